"""The two ways to train, and what both leave: the whole adapted model on images, or linear heads on
a frozen one's features.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainingArguments

from hf_cifar.augmentation.transforms import make_transforms
from hf_cifar.data.batches import ImageBatches, resident_pixels
from hf_cifar.data.image_cache import cache_folder
from hf_cifar.data.image_store import ImageTable
from hf_cifar.data.splits import Data, Split
from hf_cifar.evaluation.calibration import apply_temperature, fit_temperature
from hf_cifar.evaluation.knn import knn_accuracy
from hf_cifar.evaluation.metrics import classification_metrics, trainer_metrics
from hf_cifar.features.extract import compute_features
from hf_cifar.features.lower_blocks import (
    CannotCache,
    FrozenLowerBlocks,
    HiddenStateBatches,
    hidden_state_batches,
)
from hf_cifar.features.store import weights_fingerprint
from hf_cifar.methods.linear_probe import FeatureBatches, LinearHeads, best_of, head_metrics
from hf_cifar.methods.lora import save_adapter
from hf_cifar.methods.parameter_groups import group_table, learning_rate_scale, parameter_groups
from hf_cifar.methods.schedules import UnfreezeSchedule
from hf_cifar.models.image_size import check_schedule
from hf_cifar.models.load import Backbone
from hf_cifar.models.structure import head
from hf_cifar.recipe.recipe import Recipe, public_name
from hf_cifar.reporting import predictions
from hf_cifar.reporting.provenance import commit, hardware_facts, peak_memory, versions
from hf_cifar.training import checkpoints
from hf_cifar.training.progress import Progress, Speed
from hf_cifar.training.signals import Interrupt, Interrupted
from hf_cifar.training.trainer import CifarTrainer
from hf_cifar.training.weight_average import WeightAverage

log = logging.getLogger(__name__)
# at most, of the train split, scored without augmentation to tell learning from overfitting
CLEAN_TRAIN_SAMPLES = 2000


@dataclass
class Stage:
    """A loaded and adapted model with its data: trains, scores every split once, gathers the facts
    and saves the model.
    """

    recipe: Recipe
    args: TrainingArguments
    data: Data
    backbone: Backbone
    model: Any
    flops: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        r, data, transforms = self.recipe, self.data, make_transforms(self.recipe, self.backbone)
        held: dict[int, torch.Tensor | None] = {}

        def batches(split: Split, training: bool) -> ImageBatches:
            if id(split.images) not in held:
                held[id(split.images)] = resident_pixels(
                    split.images, self.args.device, r.data_path
                )
            made = ImageBatches(
                split, transforms, training=training, resident=held[id(split.images)]
            )
            made.channels_last = bool(r.channels_last)
            return made

        views = {"linear": r.feature_views or 1, "partial": r.feature_views}.get(r.method)
        self.train_set: Any = batches(data.train, training=views != 1)
        self.train_set.views = views
        if r.image_size_schedule:
            sides = [side for _, side in r.image_size_schedule]
            self.train_set.at_another_size = check_schedule(
                self.model, sides, self.backbone.image_size
            )
        # A tenth of them: the gap to validation is no surer than validation, and scoring must cost
        # little beside training.
        most = len(data.train) if r.method == "linear" else len(data.train) // 10 + 1
        first = slice(min(CLEAN_TRAIN_SAMPLES, most))
        clean = dataclasses.replace(
            data.train, rows=data.train.rows[first], labels=data.train.labels[first]
        )
        self.eval_sets: dict[str, Any] = {}
        if (
            data.validation is not None or r.method == "linear"
        ):  # heads are chosen on it where there is no validation
            self.eval_sets["train"] = batches(clean, False)
        for split in (data.validation, data.test):
            if split is not None:
                self.eval_sets[split.name] = batches(split, False)
        if r.tta == "flip" and data.test is not None:
            self.eval_sets["flipped"] = batches(data.test, False)
            self.eval_sets["flipped"].mirrored = True
        self.rate_scale = 1.0
        if r.scale_learning_rate != "none":
            batch = (
                self.args.train_batch_size
                * self.args.gradient_accumulation_steps
                * self.args.world_size
            )
            self.rate_scale = learning_rate_scale(r, batch)
            rate = self.args.learning_rate * self.rate_scale
            log.info(
                "learning rate: %.3g, %.4g times the recipe's: %d images an update",
                rate,
                self.rate_scale,
                batch,
            )
        if (
            not isinstance(data.train.images, ImageTable)
            and r.training["dataloader_num_workers"] is None
        ):
            self.args.dataloader_num_workers = min(8, os.cpu_count() or 1)
            log.info(
                "images of many sizes: decoded by %d workers", self.args.dataloader_num_workers
            )

    def trainer(self) -> CifarTrainer:
        """The trainer of what this stage trains."""
        raise NotImplementedError

    def answers(
        self, logits: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What the trainer predicted for each split -> float64 [n, C] probabilities, and what else
        to say of them.
        """
        return {name: _softmax(values) for name, values in logits.items()}, {}

    def save_model(self, trainer: CifarTrainer) -> None:
        """model.safetensors, config.json, preprocessor_config.json (and adapter/) into the run
        folder.
        """
        self.model.save_pretrained(self.recipe.output_dir)
        self.backbone.processor.save_pretrained(self.recipe.output_dir)

    def make_trainer(
        self, model: Any, groups: Callable, metrics: Callable, flops: float
    ) -> CifarTrainer:
        r = self.recipe
        if len(self.train_set) < self.args.train_batch_size * self.args.world_size:
            self.args.dataloader_drop_last = False  # fewer images than one batch
        self.speed = Speed()
        trainer = CifarTrainer(
            model=model,
            args=self.args,
            train_dataset=self.train_set,
            eval_dataset=self.eval_sets.get("validation"),
            compute_metrics=metrics,
            callbacks=[self.speed],
            parameter_groups=groups,
            flops_per_image=flops,
            keep_checkpoints=r.training["save_total_limit"],
            average=WeightAverage(model, r.ema_decay) if r.ema_decay else None,
        )
        log.info(
            "processes: %d (%s)", self.args.world_size, trainer.accelerator.distributed_type.value
        )
        if r.early_stopping_patience is not None:
            trainer.add_callback(
                EarlyStoppingCallback(r.early_stopping_patience, r.early_stopping_threshold)
            )
        for printer in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(printer)
        if not self.args.disable_tqdm:
            trainer.add_callback(Progress(self.speed))
        return trainer

    def fit(self, trainer: CifarTrainer) -> dict[str, Any]:
        """Train (or go on), score every split once with the best checkpoint, and gather
        metrics.json.
        """
        root = self.recipe.output_dir / "checkpoints"
        if self.args.local_process_index == 0:
            shutil.rmtree(
                root / checkpoints.WRITING, ignore_errors=True
            )  # of a process that was killed
        good, passed = checkpoints.last_good(root) if root.is_dir() else (None, [])
        for line in passed:
            log.warning("%s", line)
        if good is not None:
            log.info("resuming from %s", good.name)
            trainer.carry.resume_from = good
        interrupt = Interrupt()
        trainer.add_callback(interrupt)
        interrupt.listen()
        try:
            trainer.train(resume_from_checkpoint=str(good) if good else None)
        finally:
            interrupt.leave()
        if interrupt.number is not None:
            newest = max(checkpoints.steps(root).items(), default=(0, None))[1]
            raise Interrupted(interrupt.number, newest.name if newest else None)
        runtime, state = trainer.carry.seconds(), trainer.state
        if trainer.average is not None:
            if state.best_model_checkpoint and self.args.load_best_model_at_end:
                trainer.average.load(Path(state.best_model_checkpoint))
            trainer.average.swap()
        logits = {
            n: np.asarray(trainer.predict(b, metric_key_prefix=n).predictions)
            for n, b in self.eval_sets.items()
        }
        probabilities, chosen = self.answers(logits)
        metrics: dict[str, Any] = {"run_name": self.recipe.output_dir.name}
        if self.recipe.temperature_scaling:
            metrics |= self._calibrate(probabilities)
        names = self.data.label_names
        if (flipped := probabilities.pop("flipped", None)) is not None:
            both = (probabilities["test"] + flipped) / 2
            found = classification_metrics(
                both, self.eval_sets["test"].labels, names, prefix="flip"
            )
            metrics |= {
                f"test_{name}": found[name]
                for name in ("flip_accuracy", "flip_accuracy_ci95", "flip_nll", "flip_ece")
            }
        for name, values in probabilities.items():
            labels = self.eval_sets[name].labels
            found = classification_metrics(values, labels, names, prefix=name)
            metrics |= found if name != "train" else {"train_accuracy": found["train_accuracy"]}
            if name == "test" and self.args.should_save:
                predictions.write_predictions(
                    self.recipe.output_dir, np.arange(len(labels)), labels, values, names
                )
        if "validation_accuracy" in metrics:
            metrics["train_validation_gap"] = (
                metrics["train_accuracy"] - metrics["validation_accuracy"]
            )
        epochs, best = (
            state.epoch or math.nan,
            state.best_model_checkpoint if self.args.load_best_model_at_end else None,
        )
        metrics |= {
            "train_runtime": runtime,
            "train_samples_per_second": state.global_step * self.speed.images_per_step / runtime,
            "train_steady_samples_per_second": self.speed.steady(),
            "seconds_per_epoch": runtime / epochs,
            "num_train_epochs": state.epoch,
            "global_step": state.global_step,
            "best_step": int(best.rsplit("-", 1)[1])
            if best
            else None,  # None: the last weights, nothing was chosen
            "history": state.log_history,
        }
        return metrics | chosen | self._facts()

    def _calibrate(self, probabilities: dict[str, np.ndarray]) -> dict[str, Any]:
        """Fit the temperature on validation and apply it, in place; calibration before it, for the
        record.
        """
        labels, names = {n: self.eval_sets[n].labels for n in probabilities}, self.data.label_names
        self.temperature = fit_temperature(probabilities["validation"], labels["validation"])
        told: dict[str, Any] = {"temperature": self.temperature}
        for name, values in probabilities.items():
            if name in ("validation", "test"):
                found = classification_metrics(values, labels[name], names, prefix=name)
                told |= {
                    f"{name}_{what}_before_temperature": found[f"{name}_{what}"]
                    for what in ("nll", "ece")
                }
            probabilities[name] = apply_temperature(values, self.temperature)
        return told

    @torch.no_grad()
    def _fold_temperature(self) -> None:
        linear = head(self.model)[1]
        for parameter in linear.parameters():
            parameter.div_(self.temperature)

    def _facts(self) -> dict[str, Any]:
        r, parameters, base = self.recipe, list(self.model.parameters()), self.backbone.model
        name, revision = public_name(r.model_name_or_path), r.model_revision
        hub = not r.from_scratch and name == r.model_name_or_path and not name.startswith("pypi:")
        if hub and "@" in name:
            name, revision = name.split("@", 1)
        lora = (
            {"r": r.lora_r, "alpha": r.lora_alpha, "target": r.lora_target_modules}
            if r.method == "lora"
            else None
        )
        return {
            "labels": self.data.label_names,
            "base_model": None if r.from_scratch else name,
            "base_model_revision": revision if hub else None,
            "base_model_license": self.backbone.license,
            "model_type": base.config.model_type,
            "model_class": type(base).__name__,
            "method": r.method,
            "image_size": self.backbone.image_size,
            "dataset": self.data.source,
            "dataset_license": self.data.license,
            "dataset_fingerprint": self.data.fingerprint,
            "train_samples": len(self.data.train),
            "total_parameters": sum(p.numel() for p in parameters),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "forward_flops_per_image": self.flops,
            "hardware": hardware_facts(self.args.device, self.args.world_size),
            "versions": versions(),
            "commit": commit(),
            "seed": r.seed,
            "precision": "fp16" if self.args.fp16 else "bf16" if r.training["bf16"] else "fp32",
            "launch_command": r.launch_command(),
            "recipe": r.public().to_dict(),
            "adapter": r.method == "lora",
            "lora": lora,
            "license": r.license or self.backbone.license,
            "hub_model_id": r.training["hub_model_id"],
        } | peak_memory(self.args.device)

    def pictures(self, indices: Sequence[int]) -> list[np.ndarray]:
        """uint8 [H, W, 3] of some of the test images."""
        found, split = [], cast(Split, self.data.test)
        for i in indices:
            row = int(split.rows[i])
            image = (
                split.images.pixels[row]
                if isinstance(split.images, ImageTable)
                else split.images.read(row).numpy()
            )
            found.append(np.ascontiguousarray(np.moveaxis(np.asarray(image), 0, -1)))
        return found


class WholeModel(Stage):
    """Full, partial or LoRA: images go through the adapted model at every step, or, where what is
    frozen would see the same ones again, what it made of them goes through the rest.
    """

    prefix: FrozenLowerBlocks | None = None

    def trainer(self) -> CifarTrainer:
        r, args, began = self.recipe, self.args, time.perf_counter()
        self.told: dict[str, Any] = {}
        if r.method == "partial":
            try:
                self._start_above_what_is_frozen()
                self.told["features_runtime"] = time.perf_counter() - began
            except CannotCache as why:
                log.info("hidden states: none are cached: %s", why)

        def groups(model: Any) -> list[dict[str, Any]]:
            rate, own = (
                args.learning_rate * self.rate_scale,
                (r.head_learning_rate or args.learning_rate) * self.rate_scale,
            )
            found = parameter_groups(model, rate, args.weight_decay, own, r.layer_decay, r.muon)
            log.info("what trains:\n%s", group_table(found))
            return found

        trainer = self.make_trainer(self.model, groups, trainer_metrics(), self.flops)
        if r.head_epochs or r.unfreeze_every:
            trainer.add_callback(UnfreezeSchedule(self.model, r))
        return trainer

    def _start_above_what_is_frozen(self) -> None:
        """Run what is frozen once over all images, and let training and scoring begin at the first
        block that trains.
        """
        r, args = self.recipe, self.args
        if r.mixup_alpha or r.cutmix_alpha or r.image_size_schedule:
            raise CannotCache("training images are mixed or change their size")
        augmented = (
            r.random_resized_crop_scale or r.horizontal_flip or r.auto_augment or r.random_erasing
        )
        if augmented and r.feature_views is None:
            raise CannotCache(
                "training images are augmented anew at every epoch (`feature_views` fixes their number)"
            )
        autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        prefix = FrozenLowerBlocks(
            self.model,
            self.backbone.image_size,
            autocast=autocast,
            channels_last=self.train_set.channels_last,
        )
        clean = (
            self.train_set.views == 1 and "train" in self.eval_sets
        )  # then what tells overfitting is part of it
        sets = {
            name: (batches, 1)
            for name, batches in self.eval_sets.items()
            if name != "train" or not clean
        }
        found = hidden_state_batches(
            prefix,
            sets | {"training": (self.train_set, r.feature_views or 1)},
            cache_folder(),
            batch_size=args.per_device_eval_batch_size,
            workers=args.dataloader_num_workers,
            weights=weights_fingerprint(self.model),
            quiet=args.disable_tqdm or not args.should_save,
        )
        self.train_set = found.pop("training")
        if clean:
            sample = self.eval_sets["train"].labels
            found["train"] = HiddenStateBatches(
                self.train_set.values[:, : len(sample)], sample, prefix
            )
        self.eval_sets = found
        prefix.install()
        self.prefix = prefix

    def answers(
        self, logits: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        probabilities, told = super().answers(logits)
        return probabilities, told | self.told

    def save_model(self, trainer: CifarTrainer) -> None:
        if self.prefix is not None:
            self.prefix.remove()
        self.model = trainer.model  # whole again, where it was in shards
        self._fold_temperature()
        if self.recipe.method == "lora":
            save_adapter(self.model, self.recipe.output_dir / "adapter")
            self.model = self.model.merge_and_unload()
        super().save_model(trainer)


class Heads(Stage):
    """Linear: the frozen backbone sees each image once, and heads train side by side on what it
    makes of them.
    """

    def trainer(self) -> CifarTrainer:
        r, args, began = self.recipe, self.args, time.perf_counter()
        weights = weights_fingerprint(self.model)
        # Train as it is: the one view of it, or, where the views are augmented, the clean images
        # that are kept for scoring.
        count = r.feature_views or 1
        scored = {n: b for n, b in self.eval_sets.items() if n != "train" or count > 1}
        total = count * len(self.train_set) + sum(map(len, scored.values()))
        bar = tqdm(
            total=total,
            desc="features",
            unit=" images",
            disable=args.disable_tqdm or not args.should_save,
        )
        compute = partial(
            compute_features,
            self.model,
            cache=cache_folder(),
            bf16=bool(r.training["bf16"]),
            batch_size=args.per_device_eval_batch_size,
            weights=weights,
            workers=args.dataloader_num_workers,
            progress=bar,
        )
        features = {name: compute(batches, views=1) for name, batches in scored.items()}
        views = compute(self.train_set, views=count)
        bar.close()
        self.told: dict[str, Any] = {"features_runtime": time.perf_counter() - began}
        labels = self.train_set.labels
        if "test" in features:
            self.told["knn_accuracy"] = knn_accuracy(
                views[0], labels, features["test"][0], self.eval_sets["test"].labels
            )
        rates = [rate * self.rate_scale for rate in r.probe_learning_rates or [args.learning_rate]]
        decays = r.probe_weight_decays or [args.weight_decay]
        self.grid = [(lr, wd) for lr in rates for wd in decays]
        if len(self.grid) > 1:
            args.max_grad_norm = 0.0  # one norm over all heads would couple them
        std, mean = torch.std_mean(torch.from_numpy(np.array(views)).flatten(0, 1), dim=0)
        model = LinearHeads(mean, std.clamp(min=1e-6), len(self.data.label_names), len(self.grid))
        self.train_set = FeatureBatches(views, labels)
        self.eval_sets = {n: FeatureBatches(f, scored[n].labels) for n, f in features.items()}
        self.eval_sets.setdefault("train", self.train_set)

        def groups(heads: Any) -> list[dict[str, Any]]:
            return [
                {
                    "name": f"head {k}",
                    "params": list(heads.heads[k].parameters()),
                    "lr": lr,
                    "weight_decay": wd,
                    "muon": False,
                }
                for k, (lr, wd) in enumerate(self.grid)
            ]

        metrics = partial(head_metrics, trainer_metrics(), args.metric_for_best_model)
        return self.make_trainer(model, groups, metrics, flops=0)

    def answers(
        self, logits: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        judge = "validation" if "validation" in logits else "train"
        best, scores = best_of(
            logits[judge], self.eval_sets[judge].labels, self.args.metric_for_best_model
        )
        self.best_head = best
        sweep = [
            {"learning_rate": lr, "weight_decay": wd, f"{judge}_accuracy": hit}
            for (lr, wd), hit in zip(self.grid, scores, strict=True)
        ]
        chosen = {
            "probe_sweep": sweep,
            "learning_rate": self.grid[best][0],
            "weight_decay": self.grid[best][1],
        }
        return {
            name: _softmax(values[:, best]) for name, values in logits.items()
        }, chosen | self.told

    def save_model(self, trainer: CifarTrainer) -> None:
        heads = cast(LinearHeads, trainer.model)
        heads.cpu().write_into(head(self.model.cpu())[1], self.best_head)
        self._fold_temperature()
        super().save_model(trainer)


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(-1).numpy()
