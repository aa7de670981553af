"""`evaluate --strangers`: how well scores tell a model's test pictures from other things."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hf_cifar.data.load import load_split
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.evaluation.known_pictures import (
    MOST_REFERENCES,
    features_of,
    first_images,
    freeze_classifier,
    known_of,
    read_known,
)
from hf_cifar.evaluation.left_out_classes import separation
from hf_cifar.evaluation.new_pictures import PictureFolder, load_pictures
from hf_cifar.evaluation.stranger_scores import stranger_scores
from hf_cifar.evaluation.target_data import target_recipe

log = logging.getLogger(__name__)
MOST_PICTURES = 10_000  # of the model's own test pictures, and of strangers


def evaluate_strangers(model: str, dataset: str | None, strangers: str) -> dict[str, Any]:
    """Return {"scores": {score: {"auroc", "fpr95"}}} for a model's test pictures against others.

    dataset: the data that the model knows; default: the run's own. strangers: a folder of pictures,
    or a data set. Raises UserError for a model or pictures that can't be used.
    """
    classifier = load_classifier(model)
    recipe = target_recipe(model, dataset, {})
    test = first_images(load_split(recipe, "test", classifier.pixel_range), MOST_PICTURES)
    others, names = load_pictures(strangers, classifier.pixel_range)
    if not len(others):
        raise UserError(f"--strangers {strangers}: there are no pictures; name a set with some")
    _warn_of_shared_classes(classifier.labels, _class_names(others, names, strangers))
    others = first_images(others, MOST_PICTURES)
    frozen = freeze_classifier(classifier)
    stored = read_known(classifier)
    if stored is not None:
        known = stored.known
    else:
        train = first_images(load_split(recipe, "train", classifier.pixel_range), MOST_REFERENCES)
        known = known_of(classifier, frozen, train)
    ours = stranger_scores(known, features_of(frozen, test))
    theirs = stranger_scores(known, features_of(frozen, others))
    return {
        "scores": {name: separation(ours[name], theirs[name]) for name in ours},
        "known_images": len(test),
        "stranger_images": len(others),
    }


def _class_names(others: Split, pictures: list[str], strangers: str) -> list[str]:
    """Return what the strangers' classes are called: of a folder, the names of its subfolders."""
    if not isinstance(others.images, PictureFolder):
        return others.images.label_names
    folder = Path(strangers).expanduser()
    parents = [Path(picture).relative_to(folder).parts[:-1] for picture in pictures]
    return sorted({part for parts in parents for part in parts})


def _warn_of_shared_classes(labels: list[str], classes: list[str]) -> None:
    known = {label.casefold() for label in labels}
    shared = [name for name in classes if name.casefold() in known]
    if shared:
        log.warning(
            "strangers: the model knows %d of their classes (%s), so these pictures are none;"
            " leave them out",
            len(shared),
            ", ".join(shared[:5]),
        )
