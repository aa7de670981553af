"""The Trainer, overridden where it must be: batches become model inputs on the device, images come
in an order drawn from (seed, epoch), parameters are grouped, and a checkpoint appears whole or not
at all.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from hf_cifar.data.batches import TicketSampler, whole_batch
from hf_cifar.errors import UserError
from hf_cifar.training import checkpoints
from hf_cifar.training.muon import MuonWithFallback
from hf_cifar.training.resume_state import ResumeState
from hf_cifar.training.sharding import empty_copy, gathered, wrap_classes
from hf_cifar.training.weight_average import WeightAverage

log = logging.getLogger(__name__)


class Diverged(Exception):
    """The loss was not finite. The message names the step, the learning rate and the last good
    checkpoint.
    """


class CifarTrainer(Trainer):
    """`Trainer` for datasets that return whole batches (`batches.ImageBatches`,
    `features.FeatureBatches`).

    parameter_groups: what the optimizer gets, made when it is created.
    flops_per_image: forward FLOPs; training is counted as three times that.
    average: of the weights, which is then what is evaluated.
    """

    def __init__(
        self,
        *,
        parameter_groups: Callable[[torch.nn.Module], list[dict[str, Any]]],
        flops_per_image: float,
        keep_checkpoints: int | None,
        average: WeightAverage | None = None,
        **kwargs: Any,
    ) -> None:
        self.parameter_groups = parameter_groups
        self.flops_per_image, self.keep_checkpoints = flops_per_image, keep_checkpoints
        self.label_smoothing = kwargs["args"].label_smoothing_factor
        kwargs[
            "args"
        ].label_smoothing_factor = (
            0.0  # ours is summed over the accumulated batch; the Trainer's is not
        )
        self.images, self.root = kwargs["train_dataset"], Path(kwargs["args"].output_dir)
        super().__init__(**kwargs, data_collator=whole_batch, compute_loss_func=self._loss)
        own: Any = self.model
        self.unsharded: Any = None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            if average is not None:
                raise UserError(
                    "ema_decay: FSDP and DeepSpeed split the weights that it averages; launch with DDP"
                )
            self.unsharded = empty_copy(own)
        if (
            self.is_fsdp_enabled
            and (plugin := self.accelerator.state.fsdp_plugin).transformer_cls_names_to_wrap is None
        ):
            plugin.transformer_cls_names_to_wrap = wrap_classes(own)
        self.first_bad_step = torch.full((), -1, device=self.args.device)
        self.evaluating: Any = None  # the dataset that is being evaluated
        self.add_callback(ResumeState(self))
        self.average = average
        if average is not None:
            self.add_callback(average)

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> TicketSampler:
        # Of whole updates: the Trainer counts each process's batches, and would make an epoch
        # longer on one than on two.
        update = (
            self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        )
        whole = update if self.args.dataloader_drop_last else 1
        return TicketSampler(
            len(self.images), self.args.seed, lambda: int(self.state.epoch or 0), whole
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        self.evaluating = self.eval_dataset if eval_dataset is None else eval_dataset
        return self._whole(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        self.evaluating = test_dataset
        return self._whole(super().get_test_dataloader, test_dataset)

    def _whole(self, make: Callable, dataset: Any) -> torch.utils.data.DataLoader:
        """A loader that keeps its last, smaller batch: `dataloader_drop_last` would take it from
        evaluation as well.
        """
        drop, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return make(dataset)
        finally:
            self.args.dataloader_drop_last = drop

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        model: Any = self.model
        dataset = self.images if model.training else self.evaluating
        return dataset.model_inputs(super()._prepare_inputs(inputs), self.args.device)

    # ---- loss ----

    def _loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cross-entropy in float32 over the whole accumulated batch; for K heads side by side, [B,
        K, C], their sum.

        labels: int64 [B], or float32 [B, C], the shares of mixed images.
        """
        logits = outputs["logits"].float()
        if logits.ndim == 3:
            logits, labels = logits.transpose(1, 2), labels[:, None].expand(-1, logits.shape[1])
        smoothing = self.label_smoothing if torch.is_grad_enabled() else 0.0
        loss = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        loss = loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        if (
            torch.is_grad_enabled()
        ):  # noted on the device and read at the next log, so that no step waits for it
            bad = ~torch.isfinite(loss.detach()) & (self.first_bad_step < 0)
            self.first_bad_step.masked_fill_(bad, self.state.global_step + 1)
        return loss

    def stop_if_diverged(self) -> None:
        step = int(self.first_bad_step)
        if step >= 0:
            good, _ = checkpoints.last_good(self.root)
            rate = (
                self.lr_scheduler.get_last_lr()[0] if self.lr_scheduler else self.args.learning_rate
            )
            kept = (
                f"the last good checkpoint is {good.name}" if good else "there is no checkpoint yet"
            )
            raise Diverged(
                f"the loss was not finite at step {step} (learning rate {rate:.3g}); {kept}; lower `learning_rate`"
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
        """Several processes score one model, and every sample once."""
        several, model = self.args.world_size > 1, cast(torch.nn.Module, self.model)
        for buffer in model.buffers() if several else ():
            if (
                buffer.is_floating_point()
            ):  # DDP makes batch norms alike before each step, and the last one parts them again
                torch.distributed.broadcast(buffer, 0)
        found = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if (
            several and found.metrics is not None
        ):  # the mean of each batch is gathered, with the samples that fill the last
            logits, labels = (
                torch.from_numpy(np.asarray(a)) for a in (found.predictions, found.label_ids)
            )
            with torch.no_grad():
                found.metrics[f"{metric_key_prefix}_loss"] = float(
                    self._loss({"logits": logits}, labels)
                )
        return found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            self.stop_if_diverged()
        heads = len(
            getattr(self.model, "heads", [1])
        )  # several side by side: their sum trains, their mean is told
        logs |= {k: logs[k] / heads for k in ("loss", "eval_loss", "train_loss") if k in logs}
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        share = (
            (inputs["size"] / self.images.transforms.image_size) ** 2 if "size" in inputs else 1.0
        )
        return int(3 * self.flops_per_image * len(inputs["labels"]) * share)

    # ---- optimizer ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None:
            target: Any = self.model if model is None else model
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, target)
            # An optimizer that picks its own parameters (GaLore, LOMO ...) says so under one of
            # these names.
            if not {"params", "model", "optimizer_dict"} & set(kwargs):
                merged: dict[
                    tuple[float, float, bool], dict[str, Any]
                ] = {}  # one fused call for all that share these
                for group in self.parameter_groups(target):
                    same = merged.setdefault(
                        (group["lr"], group["weight_decay"], group["muon"]), {**group, "params": []}
                    )
                    same["params"] += group["params"]
                groups = list(merged.values())
                if any(group["muon"] for group in groups):
                    if self.unsharded is not None:
                        raise UserError(
                            "muon: FSDP and DeepSpeed split the matrices that it needs whole; launch with DDP"
                        )
                    kind, kwargs = MuonWithFallback, {"rest": partial(kind, **kwargs)}
                self.optimizer_cls_and_kwargs = (kind, kwargs | {"params": groups})
        return super().create_optimizer(model) if model is not None else super().create_optimizer()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if (
            not self.control.should_training_stop
        ):  # resumed where it had ended: the Trainer's own loop would go on
            super()._run_epoch(*args, **kwargs)

    # ---- checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Weights under the names that they have in memory. `save_pretrained` writes a family's old
        names (ViT, DeiT ...), of which the Trainer's own resume and best-model loading then load
        nothing, with no more than a warning.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        folder = str(output_dir or self.args.output_dir)
        if isinstance(model, PreTrainedModel) and self.args.should_save:
            model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
        elif (
            isinstance(model, PeftModel) and self.args.should_save
        ):  # "auto" would ask the Hub for the base's vocabulary
            model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
        else:
            super()._save(output_dir, state_dict)

    def gather(self) -> None:
        """Where parameters are in shards, make `model` of the first process a whole one on the CPU,
        which saves and merges as any other. Every process calls this.
        """
        if self.unsharded is None:
            return
        wrapped = self.model_wrapped
        state = (
            gathered(wrapped) if self.is_fsdp_enabled else self.accelerator.get_state_dict(wrapped)
        )
        if self.args.should_save:
            self.unsharded.load_state_dict(state, assign=True)
            self.model = self.unsharded

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.stop_if_diverged()
        root = self.root
        name, best = f"checkpoint-{self.state.global_step}", self.state.best_model_checkpoint
        aside = root / checkpoints.WRITING / name
        try:
            self.args.output_dir = str(aside.parent)
            super()._save_checkpoint(model, trial)
            self.carry.save(aside)
            if self.state.best_global_step == self.state.global_step:
                best = str(root / name)
            self.state.best_model_checkpoint = best  # not the place where it was written
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if self.average is not None:
                    self.average.save(aside)
                (aside / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
                self.state.save_to_json(str(aside / "trainer_state.json"))
                checkpoints.seal(aside, root / name)
        finally:
            self.args.output_dir = str(root)
            if self.args.should_save:
                shutil.rmtree(
                    aside.parent, ignore_errors=True
                )  # a disk that is full must not be left full by half of one
        if self.args.should_save:
            checkpoints.rotate(
                root,
                self.keep_checkpoints,
                self.state.global_step,
                Path(best).name if best else None,
            )
        self.accelerator.wait_for_everyone()

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint or "")
        if (
            wrong := checkpoints.damage(best)
        ) is not None:  # the Trainer would go on with the last weights, or with wrong ones
            raise UserError(
                f"{best}, the best checkpoint: {wrong}; put it back and start the same command, or start over with --fresh"
            )
        super()._load_best_model()

    @property
    def carry(self) -> ResumeState:
        return next(c for c in self.callback_handler.callbacks if isinstance(c, ResumeState))

    @property
    def early_stopping(self) -> EarlyStoppingCallback | None:
        return next(
            (c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)),
            None,
        )
