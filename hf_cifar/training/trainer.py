"""The Trainer, overridden where it must be: batches become model inputs on the device, images come
in an order drawn from (seed, epoch), and a checkpoint appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from hf_cifar.data.batches import BalancedSampler, BatchDataset, TicketSampler, whole_batch
from hf_cifar.errors import Diverged, UserError
from hf_cifar.training import checkpoints
from hf_cifar.training.determinism import missing_kernel
from hf_cifar.training.muon import MuonWithFallback
from hf_cifar.training.resume_state import ResumeState
from hf_cifar.training.sharding import empty_copy, gathered_state, wrap_classes
from hf_cifar.training.weight_average import WeightAverage


class Loss(Protocol):
    """The loss of a batch, as `compute_loss_func` of the Trainer takes it."""

    def __call__(
        self, outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor: ...


class CifarTrainer(Trainer):
    """The `Trainer` for datasets that return whole batches (`data.batches.BatchDataset`).

    loss: see `Loss`. parameter_groups: a model -> the groups of its optimizer, made when the
    optimizer is. forward_flops: of all views of one image, `image_size` pixels a side.
    keep_checkpoints: how many checkpoints stay on disk; None for all. drop_last: leave out the
    images of an epoch that fill no whole update. average: of the weights; it is evaluated in their
    place. balanced: draw each class equally often.
    """

    def __init__(
        self,
        *,
        loss: Loss,
        parameter_groups: Callable[[torch.nn.Module], list[dict[str, Any]]],
        forward_flops: float,
        image_size: int,
        keep_checkpoints: int | None,
        drop_last: bool,
        average: WeightAverage | None = None,
        balanced: bool = False,
        **kwargs: Any,
    ) -> None:
        self.loss, self.parameter_groups = loss, parameter_groups
        self.forward_flops, self.image_size = forward_flops, image_size
        self.keep_checkpoints, self.drop_last = keep_checkpoints, drop_last
        self.balanced = balanced
        self.batches: BatchDataset = kwargs["train_dataset"]
        self.root = Path(kwargs["args"].output_dir)
        self.output_dir = self.root  # of the checkpoint that is being written
        super().__init__(**kwargs, data_collator=whole_batch, compute_loss_func=self._watched_loss)
        model: Any = self.model
        self.unsharded: Any = None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            if average is not None:
                raise UserError(
                    "ema_decay: FSDP and DeepSpeed split the weights that it averages;"
                    " launch with DDP"
                )
            self.unsharded = empty_copy(model)
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            if plugin.transformer_cls_names_to_wrap is None:
                plugin.transformer_cls_names_to_wrap = wrap_classes(model)
        self.first_bad_step = torch.full((), -1, device=self.args.device)
        self.evaluated: Any = None  # the dataset that is being evaluated
        self.resume_state = ResumeState(self)
        self.add_callback(self.resume_state)
        self.average = average
        if average is not None:
            self.add_callback(average)

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> TicketSampler:
        # An epoch is cut to whole updates of all processes together: the Trainer counts each
        # process's own batches, and would make an epoch longer on one process than on two.
        update = (
            self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        )
        multiple = update if self.drop_last else 1
        seed, labels = self.args.seed, self.batches.labels

        def epoch() -> int:
            return int(self.state.epoch or 0)

        if self.balanced and labels is not None:
            return BalancedSampler(labels, seed, epoch, multiple)
        return TicketSampler(len(self.batches), seed, epoch, multiple)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        self.evaluated = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        self.evaluated = test_dataset
        return super().get_test_dataloader(test_dataset)

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        model: Any = self.model
        dataset = self.batches if model.training else self.evaluated
        return dataset.model_inputs(super()._prepare_inputs(inputs), self.args.device)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            return super().training_step(*args, **kwargs)
        except RuntimeError as error:
            if (refused := missing_kernel(error)) is not None:
                raise refused from None
            raise

    # ---- loss ----

    def _watched_loss(
        self, outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss, and note on the device the first training step where it is not finite.

        The note is read at the next log, so that no step waits for the device.
        """
        loss = self.loss(outputs, labels, num_items_in_batch)
        if torch.is_grad_enabled():
            bad = ~torch.isfinite(loss.detach()) & (self.first_bad_step < 0)
            self.first_bad_step.masked_fill_(bad, self.state.global_step + 1)
        return loss

    def stop_if_diverged(self) -> None:
        """Raise Diverged if the loss of a step up to now was not finite."""
        step = int(self.first_bad_step)
        if step < 0:
            return
        checkpoint, _ = checkpoints.last_good(self.root)
        schedule = self.lr_scheduler
        rate = float(schedule.get_last_lr()[0]) if schedule else self.args.learning_rate
        saved = "there is no checkpoint yet"
        if checkpoint:
            saved = f"the last good checkpoint is {checkpoint.name}"
        raise Diverged(
            f"the loss was not finite at step {step} (learning rate {rate:.3g}); {saved};"
            " lower `learning_rate`"
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.stop_if_diverged()
        with self.average.in_place() if self.average is not None else contextlib.nullcontext():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Score one and the same model in all processes, and every sample once."""
        several = self.args.world_size > 1
        if several:
            # DDP syncs BatchNorm buffers before each step, so they differ after the last one.
            for buffer in cast(torch.nn.Module, self.model).buffers():
                if buffer.is_floating_point():
                    torch.distributed.broadcast(buffer, 0)
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        label_ids: Any = output.label_ids
        several_labels = np.ndim(label_ids) > 1  # an image may have several, or none
        if (several or several_labels) and output.metrics is not None:
            # The Trainer averages the batches' losses, with the samples that pad the last batch,
            # as if each batch had as many labels as the first.
            predictions = torch.from_numpy(np.asarray(output.predictions))
            labels = torch.from_numpy(np.asarray(label_ids))
            with torch.no_grad():
                loss = self.loss({"logits": predictions}, labels)
            output.metrics[f"{metric_key_prefix}_loss"] = float(loss)
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            self.stop_if_diverged()
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the operations of one training step: three times those of its forward pass."""
        scale = (inputs["size"] / self.image_size) ** 2 if "size" in inputs else 1.0
        return int(3 * self.forward_flops * len(inputs["labels"]) * scale)

    # ---- optimizer ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            target: Any = self.model if model is None else model
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, target)
            # An optimizer that picks its own parameters (GaLore, LOMO ...) says so by these names.
            if not {"params", "model", "optimizer_dict"} & set(kwargs):
                groups = _merged(self.parameter_groups(target))
                if any(group["muon"] for group in groups):
                    if self.unsharded is not None:
                        raise UserError(
                            "muon: FSDP and DeepSpeed split the matrices that it needs whole;"
                            " launch with DDP"
                        )
                    kind, kwargs = MuonWithFallback, {"fallback": partial(kind, **kwargs)}
                self.optimizer_cls_and_kwargs = (kind, kwargs | {"params": groups})
        return super().create_optimizer(model) if model is not None else super().create_optimizer()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that resumes where training had ended must not train on, as the Trainer would.
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    # ---- checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save weights under the names that they have in memory.

        `save_pretrained` writes a family's old names (ViT, DeiT ...), of which the Trainer's own
        resume and best-model loading then load nothing, with no more than a warning.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        folder = str(output_dir or self.args.output_dir)
        if isinstance(model, PreTrainedModel) and self.args.should_save:
            model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
        elif isinstance(model, PeftModel) and self.args.should_save:
            # save_embedding_layers="auto" would ask the Hub for the base's vocabulary.
            model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
        else:
            super()._save(output_dir, state_dict)

    def whole_model(self) -> Any:
        """Return the trained model; where its weights are in shards, in the first process a whole
        copy on the CPU. Every process must call this.
        """
        if self.unsharded is None:
            return self.model
        wrapped = self.model_wrapped
        sharded_by_fsdp = self.is_fsdp_enabled
        state = (
            gathered_state(wrapped) if sharded_by_fsdp else self.accelerator.get_state_dict(wrapped)
        )
        if not self.args.should_save:
            return self.model
        self.unsharded.load_state_dict(state, assign=True)
        return self.unsharded

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside, seal it with checksums and rename it into place."""
        self.stop_if_diverged()
        name, best = f"checkpoint-{self.state.global_step}", self.state.best_model_checkpoint
        aside = self.root / checkpoints.WRITING / name
        try:
            self.output_dir = aside.parent
            super()._save_checkpoint(model, trial)
            self.resume_state.save(aside)
            if self.state.best_global_step == self.state.global_step:
                best = str(self.root / name)
            self.state.best_model_checkpoint = best  # its final place, not where it was written
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if self.average is not None:
                    self.average.save(aside)
                (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle with local paths
                self.state.save_to_json(str(aside / "trainer_state.json"))
                checkpoints.seal(aside, self.root / name)
        finally:
            self.output_dir = self.root
            if self.args.should_save:  # half a checkpoint must not keep a full disk full
                shutil.rmtree(aside.parent, ignore_errors=True)
        if self.args.should_save:
            checkpoints.rotate(
                self.root,
                self.keep_checkpoints,
                self.state.global_step,
                Path(best).name if best else None,
            )
        self.accelerator.wait_for_everyone()

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint or "")
        if (damage := checkpoints.damage(best)) is not None:
            # The Trainer would go on with the last weights, or with damaged ones.
            raise UserError(
                f"{best}, the best checkpoint: {damage}; restore it and run the same command, or"
                " start over with --fresh"
            )
        super()._load_best_model()

    @property
    def early_stopping(self) -> EarlyStoppingCallback | None:
        """The callback that stops training early, if there is one."""
        callbacks = self.callback_handler.callbacks
        return next((c for c in callbacks if isinstance(c, EarlyStoppingCallback)), None)


def _merged(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups with those joined that share learning rate, weight decay and optimizer:
    a fused optimizer makes one call a group.
    """
    merged: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for group in groups:
        key = group["lr"], group["weight_decay"], group["muon"]
        merged.setdefault(key, {**group, "params": []})["params"] += group["params"]
    return list(merged.values())
