"""Training by gradient descent, with the Trainer: what full, partial and LoRA fine-tuning share."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from hf_cifar.data.batches import BatchDataset, ImageBatches
from hf_cifar.data.image_cache import cache_folder
from hf_cifar.errors import Interrupted, UserError
from hf_cifar.features.extract import compute_features
from hf_cifar.features.store import weights_fingerprint
from hf_cifar.methods.base import Setup
from hf_cifar.methods.parameter_groups import group_table, learning_rate_scale, parameter_groups
from hf_cifar.methods.schedules import UnfreezeSchedule
from hf_cifar.models.structure import head
from hf_cifar.training import checkpoints
from hf_cifar.training.feature_monitor import FeatureMonitor
from hf_cifar.training.progress import Speed, training_progress
from hf_cifar.training.signals import StopOnSignal
from hf_cifar.training.trainer import CifarTrainer
from hf_cifar.training.weight_average import WeightAverage

log = logging.getLogger(__name__)


class GradientLearner:
    """Trains the prepared model with a `CifarTrainer`, and resumes it.

    train_dataset, evaluation: the datasets, where they are not the setup's own.
    """

    def __init__(
        self,
        setup: Setup,
        train_dataset: BatchDataset | None = None,
        evaluation: dict[str, BatchDataset] | None = None,
    ) -> None:
        recipe, arguments, model = setup.recipe, setup.arguments, setup.model
        self.setup = setup
        self.evaluation = setup.datasets.evaluation if evaluation is None else evaluation
        self.rate_scale = self._learning_rate_scale()
        self.speed = Speed()
        self.monitor = FeatureMonitor(head(model)[1]) if recipe.monitor_features else None
        compute_metrics: Callable[[Any], dict[str, float]] = setup.objective.compute_metrics
        if self.monitor is not None:
            compute_metrics = self.monitor.with_features(compute_metrics)
        self.trainer = CifarTrainer(
            model=model,
            args=arguments,
            train_dataset=setup.datasets.train if train_dataset is None else train_dataset,
            eval_dataset=self.evaluation.get("validation"),
            compute_metrics=compute_metrics,
            callbacks=[self.speed, *setup.objective.callbacks()],
            loss=setup.objective.loss,
            parameter_groups=self._parameter_groups,
            forward_flops=setup.forward_flops * recipe.views_at_once,
            image_size=setup.backbone.image_size,
            keep_checkpoints=recipe.training["save_total_limit"],
            drop_last=recipe.training["dataloader_drop_last"],
            average=WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None,
            balanced=recipe.sampler == "balanced",
        )
        trainer = self.trainer
        kind = trainer.accelerator.distributed_type.value
        log.info("processes: %d (%s)", arguments.world_size, kind)
        if recipe.early_stopping_patience is not None:
            patience, threshold = recipe.early_stopping_patience, recipe.early_stopping_threshold
            trainer.add_callback(EarlyStoppingCallback(patience, threshold))
        if recipe.head_epochs or recipe.unfreeze_every:
            trainer.add_callback(UnfreezeSchedule(model, recipe))
        if self.monitor is not None:
            trainer.add_callback(self.monitor)
        for printer in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(printer)
        if not arguments.disable_tqdm:
            trainer.add_callback(training_progress(self.speed))

    def _learning_rate_scale(self) -> float:
        recipe, arguments = self.setup.recipe, self.setup.arguments
        if recipe.scale_learning_rate == "none":
            return 1.0
        batch = (
            arguments.train_batch_size
            * arguments.gradient_accumulation_steps
            * arguments.world_size
        )
        scale = learning_rate_scale(recipe, batch)
        rate = arguments.learning_rate * scale
        log.info(
            "learning rate: %.3g, %.4g times the recipe's: %d images an update", rate, scale, batch
        )
        return scale

    def _parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        recipe, rate = self.setup.recipe, self.setup.arguments.learning_rate
        groups = parameter_groups(
            model,
            rate * self.rate_scale,
            self.setup.arguments.weight_decay,
            head_learning_rate=(recipe.head_learning_rate or rate) * self.rate_scale,
            layer_decay=recipe.layer_decay,
            muon=recipe.muon,
        )
        log.info("what trains:\n%s", group_table(groups))
        return groups

    def train(self) -> None:
        """Train, or resume from the newest good checkpoint.

        Raises Interrupted after a signal, Diverged for a loss that is not finite.
        """
        trainer, root = self.trainer, self.trainer.root
        if trainer.args.local_process_index == 0:  # what a killed process was writing
            shutil.rmtree(root / checkpoints.WRITING, ignore_errors=True)
        checkpoint, skipped = checkpoints.last_good(root) if root.is_dir() else (None, [])
        for line in skipped:
            log.warning("%s", line)
        if checkpoint is not None:
            log.info("resuming from %s", checkpoint.name)
            trainer.resume_state.checkpoint = checkpoint
        stop = StopOnSignal()
        trainer.add_callback(stop)
        if self.monitor is not None:
            self.monitor.start(self._pretrained_features())
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if self.monitor is not None:
            self.monitor.stop()
        if stop.number is not None:
            newest = checkpoints.newest(root)
            raise Interrupted(stop.number, newest.name if newest else None)
        self.seconds = trainer.resume_state.seconds()
        if trainer.average is not None:
            if self._best_checkpoint is not None:
                trainer.average.load(self._best_checkpoint)
            trainer.average.swap()

    def _pretrained_features(self) -> np.ndarray:
        """Return float32 [n, D] of the validation images, before a step or a checkpoint."""
        setup, arguments = self.setup, self.setup.arguments
        if arguments.world_size > 1:
            raise UserError("monitor_features: works with one process; leave it out")
        features = compute_features(
            setup.model,
            cast(ImageBatches, setup.datasets.evaluation["validation"]),
            cache_folder(),
            views=1,
            bf16=bool(setup.recipe.training["bf16"]),
            batch_size=arguments.per_device_eval_batch_size,
            weights=weights_fingerprint(setup.model),
        )
        return features.values[0]

    @property
    def _best_checkpoint(self) -> Path | None:
        """The checkpoint that validation chose; None for the last weights, where nothing was."""
        best = self.trainer.state.best_model_checkpoint
        return Path(best) if best and self.trainer.args.load_best_model_at_end else None

    @property
    def resumed(self) -> bool:
        return self.trainer.resume_state.checkpoint is not None

    def predict(self, name: str) -> np.ndarray:
        dataset: Any = self.evaluation[name]
        self.trainer.compute_metrics = None  # the outputs are what is asked for
        output = self.trainer.predict(dataset, metric_key_prefix=name)
        return np.asarray(output.predictions)

    def results(self) -> dict[str, Any]:
        state, best = self.trainer.state, self._best_checkpoint
        images = state.global_step * self.speed.images_per_step
        return {
            "train_runtime": self.seconds,
            "train_samples_per_second": images / self.seconds,
            "train_steady_samples_per_second": self.speed.steady(),
            "seconds_per_epoch": self.seconds / (state.epoch or math.nan),
            "num_train_epochs": state.epoch,
            "global_step": state.global_step,
            "best_step": int(best.name.rsplit("-", 1)[1]) if best else None,
            "history": state.log_history,
            **({"feature_warnings": self.monitor.warnings} if self.monitor is not None else {}),
        }

    def trained_model(self) -> Any:
        return self.trainer.whole_model()
