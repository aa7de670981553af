"""Masked autoencoding: a ViT is pretrained without labels by drawing what is hidden of an image."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback

from hf_cifar.augmentation.masking import patch_order
from hf_cifar.data.batches import BatchDataset, ImageBatches
from hf_cifar.data.load import load_data
from hf_cifar.data.splits import Split, first_rows
from hf_cifar.distributed import is_local_writer
from hf_cifar.errors import UserError
from hf_cifar.evaluation.knn import knn_accuracy
from hf_cifar.features.logistic_regression import (
    fit_logistic_regression,
    out_of_fold_probabilities,
)
from hf_cifar.files import atomic_file
from hf_cifar.models.config import write_pixel_range
from hf_cifar.models.load import Backbone
from hf_cifar.models.masked_autoencoder import (
    load_masked_autoencoder,
    masked_autoencoder_skeleton,
    patch_statistics,
)
from hf_cifar.objectives.base import Datasets, Objective, ReadyModel
from hf_cifar.objectives.image_datasets import FLIPPED, decoding_workers, image_datasets
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.reporting.plot_style import drawing, save_figure
from hf_cifar.reporting.reconstruction_plot import reconstructions
from hf_cifar.reporting.training_plots import learning_curves
from hf_cifar.training.feature_monitor import measures

log = logging.getLogger(__name__)
REFERENCES = 5_000  # most training images whose features answer for test images
MEASURED = 2_000  # most validation images whose features are measured at each evaluation
SHOWN = 8  # pictures whose reconstructions are drawn
RECONSTRUCTIONS = "reconstructions"  # folder beside the checkpoints, a file for each evaluation
# Keys that have no meaning here, with the value that leaves them out.
REFUSED = {
    "mixup_alpha": (0.0, "mixes images, and their patches would be drawn from two pictures"),
    "cutmix_alpha": (0.0, "mixes images, and their patches would be drawn from two pictures"),
    "random_erasing": (0.0, "erases boxes, which the model would learn to draw"),
    "image_size_schedule": (None, "changes the number of patches, which an autoencoder fixes"),
    "temperature_scaling": (False, "calibrates a classifier"),
    "monitor_features": (False, "watches a classifier; features are measured in any case"),
    "tta": ("none", "averages the answers of a classifier"),
}


class MaskedAutoencoding(Objective):
    """A masked autoencoder (He et al. 2022): most patches of an image are hidden, and a small
    decoder draws their normalised pixels from what the encoder says about the others. The encoder
    is what a run leaves.

    Labels are used for two measures of the features alone: the vote of nearest neighbours, and a
    linear classifier on the class token.
    """

    checkpoint_metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "knn_accuracy": True}
    methods: ClassVar[tuple[str, ...]] = ("full",)
    refused: ClassVar[Mapping[str, tuple[Any, str]]] = REFUSED

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        if recipe.training["label_smoothing_factor"]:
            raise UserError(
                "label_smoothing_factor: a masked autoencoder learns from no labels; leave it out"
            )
        if recipe.training["push_to_hub"]:
            raise UserError(
                "push_to_hub: only image classifiers are pushed; leave it out, and push the run"
                " that fine-tunes the encoder"
            )
        self.data = data = load_data(recipe, needs_labels=False)
        for message in data.messages:
            log.info("%s", message)
        self.has_labels = len(data.label_names) > 1
        if not self.has_labels:
            log.info("%s has no labels: features are not measured", data.source)
            if recipe.training["metric_for_best_model"] == "knn_accuracy":
                raise UserError(
                    f"metric_for_best_model: {data.source} has no labels, so only `loss` can choose"
                    " a checkpoint; set it"
                )
        self.labels: dict[str, np.ndarray] = {}
        self.watch: ReconstructionWatch | None = None

    def load_backbone(self) -> Backbone:
        backbone = load_masked_autoencoder(self.recipe, self.recipe.mask_ratio)
        write_pixel_range(backbone.model.config, self.data.pixel_range)
        return backbone

    @classmethod
    def skeleton(cls, recipe: Recipe) -> tuple[PreTrainedModel, int]:
        return masked_autoencoder_skeleton(recipe, recipe.mask_ratio)

    @property
    def workers(self) -> int:
        return decoding_workers(self.data)

    def datasets(self, ready: ReadyModel) -> Datasets:
        datasets = image_datasets(self.recipe, self.data, ready)
        backbone = ready.backbone
        patches = (backbone.image_size // ready.model.config.patch_size) ** 2
        train: Any = datasets.train

        def masked(batches: Any, **options: Any) -> MaskedBatches:
            return MaskedBatches(batches, self.recipe.seed, patches, **options)

        plain = {n: b for n, b in datasets.evaluation.items() if n not in ("train", FLIPPED)}
        if self.has_labels and plain:
            data = self.data.train
            rows = first_rows(data.labels, REFERENCES)
            seen = Split(data.name, data.images, data.rows[rows], data.labels[rows])
            plain["train"] = ImageBatches(
                seen,
                train.transforms,
                training=False,
                resident=train.resident,
                channels_last=ready.channels_last,
            )
        evaluation: dict[str, BatchDataset] = {
            name: masked(batches, with_features=self.has_labels) for name, batches in plain.items()
        }
        self.labels = {name: np.asarray(batches.labels) for name, batches in evaluation.items()}
        held_out = evaluation.get("validation", evaluation.get("test"))
        if held_out is None:
            held_out = masked(ImageBatches(self.data.train, train.transforms, training=False))
        self.watch = ReconstructionWatch(
            held_out, backbone.processor, self.recipe.output_dir / "checkpoints" / RECONSTRUCTIONS
        )
        return Datasets(masked(train), evaluation)

    def callbacks(self) -> list[TrainerCallback]:
        return [self.watch] if self.watch is not None else []

    def loss(
        self, outputs: Any, labels: Any, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the mean squared error of the hidden patches' normalised pixels.

        The logits are float32 [B, 1 or more], each image's error first.
        """
        errors = outputs["logits"][:, 0]
        return errors.sum() / (len(errors) if num_items_in_batch is None else num_items_in_batch)

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return how well the features of the validation images tell their classes, each image
        being asked about by the others: by their vote, and by linear classifiers of five folds. The
        effective rank tells a collapse of the features.
        """
        if not self.has_labels:
            return {}
        labels = np.asarray(prediction.label_ids)
        rows = first_rows(labels, MEASURED)
        features, labels = np.asarray(prediction.predictions)[rows, 1:], labels[rows]
        all_measures = measures(features, labels, features)
        metrics = {name: all_measures[name] for name in ("knn_accuracy", "effective_rank")}
        counts = np.bincount(labels)
        present = np.flatnonzero(counts >= 2)  # the folds need two images of a class
        if len(present) >= 2:
            rows = np.isin(labels, present)
            classes = torch.from_numpy(np.searchsorted(present, labels[rows]))
            answers = out_of_fold_probabilities(
                torch.from_numpy(features[rows].copy()),
                classes,
                len(present),
                seed=self.recipe.seed,
            )
            metrics["linear_accuracy"] = float((answers.argmax(1) == classes).double().mean())
        return metrics

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the loss on validation and test, and how well features tell their classes by those
        of training images.
        """
        scored = {name: values for name, values in outputs.items() if name != "train"}
        metrics: dict[str, Any] = {
            f"{name}_loss": float(values[:, 0].astype(np.float64).mean())
            for name, values in scored.items()
        } | {f"{name}_samples": len(values) for name, values in scored.items()}
        if "train" not in outputs:
            return metrics
        references, labels = outputs["train"][:, 1:].copy(), self.labels["train"]
        probe = fit_logistic_regression(
            torch.from_numpy(references)[None],
            torch.from_numpy(labels),
            len(self.data.label_names),
            seed=self.recipe.seed,
        )
        for name, values in scored.items():
            features, truth = values[:, 1:].copy(), self.labels[name]
            answers = probe.logits(torch.from_numpy(features)).argmax(1).numpy()
            metrics[f"{name}_knn_accuracy"] = knn_accuracy(references, labels, features, truth)
            metrics[f"{name}_linear_accuracy"] = float((answers == truth).mean())
        return metrics | {"probe_images": len(labels)}

    def finish_model(self, model: Any) -> Any:
        """Return the encoder. What the last weights draw is added to the reconstructions."""
        if self.watch is not None:
            self.watch.last = self.watch.draw(model)
        encoder = model.encoder()
        write_pixel_range(encoder.config, self.data.pixel_range)
        return encoder

    def facts(self) -> dict[str, Any]:
        return {
            "task": "image-feature-extraction",
            "mask_ratio": self.recipe.mask_ratio,
            "labels": self.data.label_names if self.has_labels else None,
        } | self.data.facts()

    def report(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write plots/: the learning curves, and the reconstructions over the steps."""
        (folder / "plots").mkdir(exist_ok=True)
        accuracies = {
            "eval_knn_accuracy": "nearest neighbours",
            "eval_linear_accuracy": "linear classifier",
        }
        curves = learning_curves(metrics["history"], metrics.get("best_step"), accuracies)
        figures = {"learning_curves": curves}
        if self.watch is not None:
            last_step = metrics.get("best_step") or metrics["global_step"]
            figures["reconstructions"] = reconstructions(*self.watch.pictures(last_step))
        with drawing():
            for name, figure in figures.items():
                if figure is not None:
                    save_figure(figure, folder / "plots" / f"{name}.png")


class MaskedBatches:
    """Batches with an order of each image's patches, of which the first are seen.

    batches: of images. patches: of an image. with_features: ask the model for features as well.
    """

    def __init__(
        self, batches: BatchDataset, seed: int, patches: int, *, with_features: bool = False
    ) -> None:
        self.batches, self.seed, self.patches = batches, seed, patches
        self.with_features = with_features

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [n]; all 0 where there are none."""
        return self.batches.labels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        """Return the batch of images."""
        return self.batches.__getitems__(tickets)

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the model's arguments, with `noise`, float32 [B, patches]."""
        inputs = self.batches.model_inputs(batch, device)
        epoch, index = batch["epoch"].to(device), batch["index"].to(device)
        inputs["noise"] = patch_order(self.seed, epoch, index, self.patches)
        return inputs | ({"with_features": True} if self.with_features else {})


class ReconstructionWatch(TrainerCallback):
    """Draws a few held-out pictures at each evaluation, and keeps them on disk, where a resumed run
    finds them.

    batches: of the pictures. processor: says how their pixels are normalised. folder: of the files.
    """

    def __init__(self, batches: Any, processor: Any, folder: Path) -> None:
        self.batches, self.folder = batches, folder
        self.mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
        self.deviation = torch.tensor(processor.image_std).view(1, 3, 1, 1)
        self.last: np.ndarray | None = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        drawn = self.draw(kwargs["model"])
        if is_local_writer() and state.global_step:
            self.folder.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.save(buffer, drawn)
            with atomic_file(self.folder / f"{state.global_step}.npy") as file:
                file.write(buffer.getvalue())

    @torch.no_grad()
    def draw(self, model: Any) -> np.ndarray:
        """Return uint8 [3, n, H, W, 3]: the pictures, what is seen of them, and the seen patches
        with what the model draws in place of the others, given mean and contrast of each patch.
        """
        device, mode = next(model.parameters()).device, model.training
        tickets = list(range(min(SHOWN, len(self.batches))))
        inputs = self.batches.model_inputs(self.batches.__getitems__(tickets), device)
        pixels, noise = inputs["pixel_values"], inputs["noise"]
        model.eval()
        answer = model(pixel_values=pixels, noise=noise, with_patches=True)
        model.train(mode)
        target, hidden = model.patchify(pixels), answer.mask[..., None]
        mean, deviation = patch_statistics(target)
        drawn = torch.where(hidden > 0, answer.logits * deviation + mean, target)
        stages = [pixels, model.unpatchify(target * (1 - hidden)), model.unpatchify(drawn)]
        return np.stack([self._to_pictures(stage) for stage in stages])

    def _to_pictures(self, pixels: torch.Tensor) -> np.ndarray:
        values = (pixels.float().cpu() * self.deviation + self.mean) * 255
        return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def pictures(self, last_step: int) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """Return pictures, what is seen of them, and what was drawn at each step up to that of the
        saved weights. See `reconstructions`.
        """
        assert self.last is not None
        saved = {int(path.stem): path for path in self.folder.glob("*.npy")}
        drawn = {step: np.load(path)[2] for step, path in saved.items() if step <= last_step}
        return self.last[0], self.last[1], drawn | {last_step: self.last[2]}
