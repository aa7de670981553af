"""What a model knows: features of pictures that it was trained on and of some that it was not."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hf_cifar.data.load import load_split
from hf_cifar.data.splits import Split, first_rows
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.evaluation.stranger_scores import SCORES, Known
from hf_cifar.evaluation.target_data import labels_of_model
from hf_cifar.features.frozen_backbone import FrozenBackbone, freeze
from hf_cifar.models.model_files import KNOWN_PICTURES
from hf_cifar.models.structure import head
from hf_cifar.recipe.recipe import Recipe

log = logging.getLogger(__name__)
MOST_REFERENCES = 2000  # training pictures that a picture is compared with
MOST_VALIDATION = 2000


@dataclass(frozen=True)
class KnownPictures:
    """References of train, and validation pictures with the model's answers to them.

    known: references and head. validation: float32 [n, D]. labels: int64 [n], theirs. reject: the
    score, its threshold and the validation pictures' scores, where `calibrate` chose them.
    """

    known: Known
    validation: torch.Tensor
    labels: torch.Tensor
    reject: Reject | None = None


@dataclass(frozen=True)
class Reject:
    """When a picture is none of the classes: its score is below the threshold.

    score: one of `stranger_scores.SCORES`. share: of validation pictures below the threshold.
    aurocs: of each score, when each class in turn is the stranger.
    """

    score: str
    threshold: float
    share: float
    aurocs: dict[str, float]


def freeze_classifier(classifier: Classifier) -> FrozenBackbone:
    """Return a finished model as a frozen backbone."""
    return freeze(classifier.model, classifier.transforms)


def compute_known(classifier: Classifier, recipe: Recipe, frozen: FrozenBackbone) -> KnownPictures:
    """Return what a model knows, from the data that its run was trained on.

    Raises UserError where there are no validation pictures, which the model must not have seen.
    """
    train = first_images(load_split(recipe, "train", classifier.pixel_range), MOST_REFERENCES)
    try:
        validation = load_split(recipe, "validation", classifier.pixel_range)
    except UserError:
        raise UserError(
            f"{classifier.files.name}: its run has no validation pictures, which it takes to know"
            " new pictures by; train it with validation_fraction above 0"
        ) from None
    validation = first_images(validation, MOST_VALIDATION)
    known = known_of(classifier, frozen, train)
    labels = torch.from_numpy(labels_of_model(classifier.labels, validation))
    return KnownPictures(known, features_of(frozen, validation), labels)


def known_of(classifier: Classifier, frozen: FrozenBackbone, train: Split) -> Known:
    """Return the features of a split with the model's head, on the CPU."""
    _, linear = head(classifier.model)
    labels = torch.from_numpy(labels_of_model(classifier.labels, train))
    bias = linear.bias if linear.bias is not None else torch.zeros(len(classifier.labels))
    return Known(
        features_of(frozen, train), labels, linear.weight.float().cpu(), bias.float().cpu()
    )


def features_of(frozen: FrozenBackbone, split: Split) -> torch.Tensor:
    """Return float32 [n, D] on the CPU."""
    return torch.from_numpy(np.array(frozen.features(split)))


def first_images(split: Split, most: int) -> Split:
    """Return at most so many images of a split, by class in proportion."""
    places = first_rows(split.labels, most)
    return dataclasses.replace(split, rows=split.rows[places], labels=split.labels[places])


def write_known(pictures: KnownPictures, folder: Path) -> None:
    """Write features as float16 and what was calibrated; the head stands in the model."""
    from safetensors.torch import save_file

    tensors = {
        "references": pictures.known.features.half(),
        "reference_labels": pictures.known.labels,
        "validation": pictures.validation.half(),
        "validation_labels": pictures.labels,
    }
    reject = dataclasses.asdict(pictures.reject) if pictures.reject else {}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / KNOWN_PICTURES, metadata={"reject": json.dumps(reject)})


def read_known(classifier: Classifier) -> KnownPictures | None:
    """Return what `write_known` wrote beside a model, or None where there is nothing.

    Warns where config.json speaks of it. Raises UserError for a damaged file, and for one of
    another model.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(classifier.files.folder) / KNOWN_PICTURES
    if not path.is_file():
        if classifier.files.configs["config.json"].get("reject"):
            log.warning(
                '%s: config.json says when to answer "none of these", but %s is missing, so no'
                " picture is rejected; copy it beside the model",
                classifier.files.name,
                KNOWN_PICTURES,
            )
        return None
    _, linear = head(classifier.model)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            reject = json.loads((file.metadata() or {}).get("reject", "{}"))
        bias = linear.bias if linear.bias is not None else torch.zeros(len(classifier.labels))
        known = Known(
            tensors["references"].float(),
            tensors["reference_labels"],
            linear.weight.float().cpu(),
            bias.float().cpu(),
        )
        pictures = KnownPictures(
            known,
            tensors["validation"].float(),
            tensors["validation_labels"],
            Reject(**reject) if reject else None,
        )
        _check(pictures, len(classifier.labels), linear.in_features)
        return pictures
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); write it again with `hf-cifar calibrate`"
        ) from None


def _check(pictures: KnownPictures, classes: int, width: int) -> None:
    """Raise ValueError unless these are pictures of a model with so many classes, whose head takes
    features of this width: the file may be somebody else's.
    """
    known, reject = pictures.known, pictures.reject
    for features, labels in (
        (known.features, known.labels),
        (pictures.validation, pictures.labels),
    ):
        if features.shape != (len(labels), width) or not len(labels):
            raise ValueError("it belongs to another model")
        if labels.dtype != torch.int64 or labels.min() < 0 or labels.max() >= classes:
            raise ValueError("its labels are not those of the model")
        if not features.isfinite().all():
            raise ValueError("its features are not finite")
    if reject is not None and (reject.score not in SCORES or not math.isfinite(reject.threshold)):
        raise ValueError("its threshold can't be used")
