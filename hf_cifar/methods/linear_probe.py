"""Linear probing: the backbone stays frozen and logistic regression on its features is the head."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.class_weights import balanced_weights
from hf_cifar.data.image_cache import cache_folder
from hf_cifar.evaluation.knn import knn_accuracy
from hf_cifar.features.extract import Features, compute_features
from hf_cifar.features.logistic_regression import LogisticRegression, fit_logistic_regression
from hf_cifar.features.store import Cost, cost_facts, weights_fingerprint
from hf_cifar.methods.base import Learner, Method, Setup
from hf_cifar.models.structure import head
from hf_cifar.recipe.fields import TRAINING_DEFAULTS, MethodKeys
from hf_cifar.training.progress import image_progress

log = logging.getLogger(__name__)
# Keys of gradient descent, which say nothing about a problem that is solved to convergence.
UNUSED_KEYS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "eval_strategy",
    "save_strategy",
    "metric_for_best_model",
    "ema_decay",
    "early_stopping_patience",
    "head_learning_rate",
    "layer_decay",
    "scale_learning_rate",
)


class LinearProbe(Method):
    """Only the head trains: multinomial logistic regression on cached features."""

    description: ClassVar[str] = "kept frozen under a linear classifier trained"
    tags: ClassVar[tuple[str, ...]] = ("linear-probe",)
    runs_backbone_once: ClassVar[bool] = True

    @property
    def views(self) -> int | None:
        return self.recipe.feature_views or 1

    def prepare(self, model: nn.Module) -> nn.Module:
        model.requires_grad_(False)
        head(model)[1].requires_grad_(True)
        return model

    def learner(self, setup: Setup) -> Learner:
        if unused := self.unused_keys():
            log.warning(
                "method: linear solves for the best head and has no use for %s", ", ".join(unused)
            )
        return ProbeLearner(setup)

    def unused_keys(self) -> list[str]:
        """Return the keys that were changed from their defaults and have no effect."""
        defaults = TRAINING_DEFAULTS | vars(MethodKeys())
        values = self.recipe.to_dict()
        return [name for name in UNUSED_KEYS if values[name] != defaults[name]]


class ProbeLearner:
    """Computes the features of every image once and fits a classifier to them."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.evaluation = setup, setup.datasets.evaluation
        self.resumed = False
        self.classifier: LogisticRegression | None = None
        self.features: dict[str, torch.Tensor] = {}
        self.metrics: dict[str, Any] = {}

    def train(self) -> None:
        """Compute the features, or map them from the cache, and fit the classifier."""
        start = time.perf_counter()
        train, evaluation = self._compute_features()
        features_end = time.perf_counter()
        labels = cast(np.ndarray, self.setup.datasets.train.labels)
        device = self.setup.arguments.device
        classes = head(self.setup.model)[1].out_features
        weights = None
        if self.setup.recipe.class_weights == "balanced":
            weights = torch.from_numpy(balanced_weights(labels, classes)).float().to(device)
        self.classifier = fit_logistic_regression(
            torch.from_numpy(np.array(train.values)).to(device),
            torch.from_numpy(labels).to(device),
            classes,
            seed=self.setup.recipe.seed,
            class_weights=weights,
        )
        fit_end = time.perf_counter()
        self.features = {
            name: torch.from_numpy(np.array(f.values[0])) for name, f in evaluation.items()
        }
        self.metrics = {
            "features_runtime": features_end - start,
            **cost_facts([f.cost for f in (train, *evaluation.values())]),
            "train_runtime": fit_end - features_end,
            "probe_strength": self.classifier.strength,
            "probe_scores": self.classifier.scores,
        }
        if "test" in evaluation and self.setup.arguments.should_save:
            test_labels = cast(np.ndarray, self.evaluation["test"].labels)
            self.metrics["knn_accuracy"] = knn_accuracy(
                train.values[0], labels, evaluation["test"].values[0], test_labels, device=device
            )

    def _compute_features(self) -> tuple[Features, dict[str, Features]]:
        """Return the features of train and of each evaluation dataset."""
        setup, arguments = self.setup, self.setup.arguments
        train = cast(ImageBatches, setup.datasets.train)
        views = setup.method.views or 1
        images = {name: cast(ImageBatches, d) for name, d in self.evaluation.items()}
        # With one view, the clean images of train that are scored are part of what trains.
        clean_train = images.pop("train", None) if views == 1 else None
        total = views * len(train) + sum(map(len, images.values()))
        shown = arguments.should_save and not arguments.disable_tqdm
        with image_progress("features", total, shown) as bar:
            compute = partial(
                compute_features,
                setup.model,
                cache=cache_folder(),
                bf16=bool(setup.recipe.training["bf16"]),
                batch_size=arguments.per_device_eval_batch_size,
                weights=weights_fingerprint(setup.model),
                workers=arguments.dataloader_num_workers,
                progress=bar,
            )
            evaluation = {name: compute(batches, views=1) for name, batches in images.items()}
            train_features = compute(train, views=views)
        if clean_train is not None:
            clean = train_features.values[:, : len(clean_train)]
            evaluation["train"] = Features(clean, Cost(0.0, 0))
        return train_features, evaluation

    def predict(self, name: str) -> np.ndarray:
        assert self.classifier is not None
        device = self.classifier.weight.device
        return self.classifier.logits(self.features[name].to(device)).cpu().numpy()

    def results(self) -> dict[str, Any]:
        return self.metrics

    def trained_model(self) -> Any:
        """Return the backbone on the CPU with the classifier as its head."""
        assert self.classifier is not None
        model = self.setup.model.cpu()
        _, linear = head(model)
        with torch.no_grad():
            linear.weight.copy_(self.classifier.weight)
            linear.bias.copy_(self.classifier.bias)
        return model
