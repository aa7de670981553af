"""A finished model on its device with its own image processor, as `pipeline` would use them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.models.config import MULTI_LABEL, load_config, read_pixel_range
from hf_cifar.models.inspect_repo import fetch_model, resolve_model
from hf_cifar.models.model_files import ModelFiles, library_errors
from hf_cifar.models.pretrained import load_weights
from hf_cifar.models.processors import load_evaluation_processor
from hf_cifar.models.task_heads import read_tasks
from hf_cifar.training.precision import keep_freed_memory, set_weight_layout


@dataclass(frozen=True)
class Classifier:
    """A model that answers, in evaluation mode.

    labels: its class names in order. pixel_range: how pictures with more than 8 bits a channel were
    converted for its training; None if they were refused. device: where the model lies. tasks: the
    class names of each task, for a model that answers several.
    """

    files: ModelFiles
    model: Any
    transforms: Transforms
    labels: list[str]
    pixel_range: PixelRange | None
    device: torch.device
    tasks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def several_labels(self) -> bool:
        """Whether a picture can have any number of the labels."""
        return self.model.config.problem_type == MULTI_LABEL

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of the classes, [..., C], or of each label by itself."""
        return logits.sigmoid() if self.several_labels else logits.softmax(-1)


def load_classifier(
    name: str, *, several_tasks: bool = False, several_labels: bool = False
) -> Classifier:
    """Return the model of a run folder, a model folder or a Hub id, with @revision if wanted.

    several_tasks: whether it may answer several tasks at once. several_labels: whether it may give
    a picture several labels. Raises UserError for a model that can't be had, that is damaged, or
    that has no classifier.
    """
    files = fetch_model(*resolve_model(name), classifier=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    config = load_config(files)
    tasks = read_tasks(config, files.name)
    if tasks and not several_tasks:
        folders = ", ".join(f"tasks/{task}" for task in tasks)
        raise UserError(
            f"{files.name} answers several tasks; name the folder of one of them in it: {folders}"
        )
    if config.problem_type == MULTI_LABEL and not several_labels:
        raise UserError(
            f"{files.name} gives each label a probability of its own, and this command is about"
            " classes that exclude each other; ask `hf-cifar evaluate` or `hf-cifar predict`"
        )
    processor, side = load_evaluation_processor(files)
    model: Any = load_weights(files, config)[0]
    labels = [str(config.id2label[number]) for number in range(config.num_labels)]
    problem = f"it doesn't take the pictures of {side} px that its image processor makes"
    with library_errors(files.name, problem), torch.inference_mode():
        outputs = model(pixel_values=torch.zeros(1, 3, side, side)).logits
    if outputs.shape != (1, len(labels)):
        raise UserError(
            f"{files.name}: it answers with numbers of shape {tuple(outputs.shape)} where its"
            f" config.json names {len(labels)} classes"
        )
    model = model.requires_grad_(False).to(device)
    pixel_range = read_pixel_range(config, f"{files.name}: config.json")
    transforms = Transforms(processor, side)
    return Classifier(files, model, transforms, labels, pixel_range, device, tasks)


@torch.inference_mode()
def probabilities(
    classifier: Classifier,
    split: Split,
    *,
    batch_size: int,
    bf16: bool,
    channels_last: bool = False,
    flip: bool = False,
) -> np.ndarray:
    """Return float64 [n, C]: the model's `scores` for each image of the split.

    flip: average the answers to an image and to its mirror image.
    Raises UserError for logits that are not finite.
    """
    batches = ImageBatches(
        split, classifier.transforms, training=False, channels_last=channels_last
    )
    set_weight_layout(classifier.model, classifier.device, channels_last)
    means, finite = [], []
    for start in range(0, len(batches), batch_size):
        tickets = list(range(start, min(start + batch_size, len(batches))))
        inputs = batches.model_inputs(batches.__getitems__(tickets), classifier.device)
        images = inputs["pixel_values"]
        with torch.autocast(classifier.device.type, torch.bfloat16, enabled=bf16):
            views = [images, images.flip(-1)] if flip else [images]
            logits = torch.stack([classifier.model(pixel_values=view).logits for view in views])
        means.append(classifier.scores(logits.double()).mean(0))
        finite.append(logits.isfinite().all(-1).all(0))
    rows_finite = torch.cat(finite).cpu()  # the device is waited for here, and only here
    check_logits(classifier, rows_finite, f"row {int(rows_finite.int().argmin())} of {split.name}")
    return torch.cat(means).cpu().numpy()


def check_logits(classifier: Classifier, finite: torch.Tensor, first: str) -> None:
    """Raise UserError unless all of `finite`, bool [n], hold.

    first: what the first image with other logits is called.
    """
    if not finite.all():
        raise UserError(
            f"{classifier.files.name}: its outputs are not finite for {int((~finite).sum())} of"
            f" {len(finite)} images, first {first}; use another checkpoint"
        )
