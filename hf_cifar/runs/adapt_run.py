"""`hf-cifar adapt`: a run adapted to the images of another place, as a new run folder."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.adaptation.adapt import Outcome, Place, adapt, check_batch
from hf_cifar.adaptation.answers import batches, shuffled
from hf_cifar.adaptation.base import Settings
from hf_cifar.adaptation.guard import information_threshold
from hf_cifar.adaptation.norms import batch_norms
from hf_cifar.adaptation.stream import run_stream
from hf_cifar.adaptation.table import ADAPTATIONS
from hf_cifar.augmentation.corruptions import CORRUPTIONS
from hf_cifar.data.cache_entry import SplitRequest
from hf_cifar.data.image_cache import load_images
from hf_cifar.data.load import load_split
from hf_cifar.data.sources.folders import FileImages, pictures_below
from hf_cifar.data.splits import Split, first_rows
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier, load_classifier
from hf_cifar.evaluation.evaluate import data_recipe
from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.evaluation.operating_point import find_positive
from hf_cifar.evaluation.stress import CorruptedImages
from hf_cifar.evaluation.target_data import labels_of_model, load_target, target_recipe
from hf_cifar.files import json_digest, write_json
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import public_name
from hf_cifar.reporting.model_card import write_card
from hf_cifar.reporting.plots import write_plots
from hf_cifar.reporting.predictions import write_predictions
from hf_cifar.runs.additions import is_run
from hf_cifar.runs.folder import RunFolder

# Beginnings of the names of figures of the model before the adaptation, which the new run has not.
OLD_FIGURES = (  # beginnings of names
    "test_",
    "validation_",
    "train_accuracy",
    "train_validation",
    "knn_",
    "temperature",
    "operating_point",
    "stress",
)


@dataclass(frozen=True)
class AdaptOptions:
    """How to adapt. adaptation: a key of `ADAPTATIONS`. split: of the target. corruption: a name
    and a severity that the target's pictures get. source_images: most images of the run's test
    split that the source is measured on. max_source_loss: a fraction.
    """

    adaptation: str
    settings: Settings
    split: str = "test"
    has_labels: bool = True
    labels: dict[str, str] | None = None
    corruption: tuple[str, int] | None = None
    batch_size: int = 128
    source_images: int = 2000
    max_source_loss: float | None = None


def parse_corruption(text: str | None) -> tuple[str, int] | None:
    """Return name and severity of "fog:5". Raises UserError."""
    if text is None:
        return None
    name, _, severity = text.replace("-", "_").partition(":")
    if name not in CORRUPTIONS or severity not in list("12345"):
        raise UserError(
            f"--corruption: write a name and a severity from 1 to 5, such as fog:5; got {text};"
            f" there are {', '.join(CORRUPTIONS)}"
        )
    return name, int(severity)


def adapt_run(
    run: str,
    dataset: str | None,
    keys: dict[str, Any],
    options: AdaptOptions,
    output_dir: str | None,
    *,
    fresh: bool = False,
) -> tuple[Outcome, Path | None]:
    """Adapt a run's model to a data set, and write it as a run of its own unless it was kept.

    dataset, keys: as in `target_recipe`. output_dir: None for the run's name with the adaptation's.
    Returns what came of it, and the new folder. Raises UserError for input that can't be used.
    """
    out = Path(output_dir or f"{run.rstrip('/')}-{options.adaptation}").expanduser()
    if out.resolve() == Path(run).expanduser().resolve():
        raise UserError(f"output_dir: {out} is the run itself; name another folder")
    if not fresh and out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"output_dir: {out} is not empty; name another folder, or start over with --fresh"
        )
    classifier, source, target = load_places(run, dataset, keys, options)
    name = public_name(target_recipe(run, dataset, keys).dataset_name)
    outcome = adapt(
        classifier,
        source,
        target,
        options.adaptation,
        options.settings,
        size=options.batch_size,
        max_source_loss=options.max_source_loss,
    )
    if outcome.kept:
        return outcome, None
    facts = outcome.facts() | {
        "method": options.adaptation,
        "description": ADAPTATIONS[options.adaptation].description,
        "target": name,
        "target_images": len(target.split),
        "corruption": ":".join(map(str, options.corruption)) if options.corruption else None,
        "source_run": Path(run).expanduser().resolve().name,
        "batch_size": options.batch_size,
        **dataclasses.asdict(options.settings),
    }
    _write(Path(run).expanduser(), out, classifier, source, outcome, facts, fresh)
    return outcome, out


def stream_run(
    run: str, dataset: str | None, keys: dict[str, Any], options: AdaptOptions, reset: bool
) -> dict[str, Any]:
    """Return how a run's model does while it adapts to a target whose images come in their order.

    Nothing is written. reset: start anew at every batch. target_after: the accuracy of the answers
    as they were given. Raises UserError for input that can't be used.
    """
    classifier, source, target = load_places(run, dataset, keys, options)
    assert source.labels is not None
    size = options.batch_size
    check_batch(target, size)
    threshold = information_threshold(classifier, source.split, source.labels, size)
    adaptation = ADAPTATIONS[options.adaptation](classifier.model, options.settings)
    if adaptation.needs_source:
        rows = shuffled(source.split, size, seed=0, epoch=0)
        adaptation.prepare(lambda: batches(classifier, source.split, size, rows))
    stream = run_stream(
        classifier, adaptation, target.split, size, reset=reset, threshold=threshold
    )

    def accuracy(answers: np.ndarray) -> float | None:
        if target.labels is None:
            return None
        return float((answers.argmax(1) == target.labels).mean())

    kept = stream.refused == stream.batches
    return {
        "kept": kept,
        "reason": f"{stream.refused} of {stream.batches} batches were answered without adaptation,"
        " because they look like batches of few classes or hold one image",
        "source_before": None,
        "source_after": None,
        "target_before": accuracy(stream.before),
        "target_after": accuracy(stream.after),
    }


def load_places(
    run: str, dataset: str | None, keys: dict[str, Any], options: AdaptOptions
) -> tuple[Classifier, Place, Place]:
    """Return a run's model, the images of its own test split, and the target. Raises UserError."""
    if not is_run(run):
        raise UserError(
            f"{run} is no finished run, whose own data the guard needs; name a run folder"
        )
    classifier = load_classifier(run)
    ADAPTATIONS[options.adaptation](classifier.model, options.settings).reset()
    source = load_split(data_recipe(run, None), "test", classifier.pixel_range)
    rows = first_rows(source.labels, options.source_images)
    source = dataclasses.replace(source, rows=source.rows[rows], labels=source.labels[rows])
    source_place = Place(source, labels_of_model(classifier.labels, source))
    if batch_norms(classifier.model) and min(options.batch_size, len(source)) < 2:
        raise UserError(
            "--batch_size, --source_images: batch norms need the statistics of two images or more,"
            f" got {min(options.batch_size, len(source))}; raise it"
        )
    recipe = target_recipe(run, dataset, keys)
    labels: np.ndarray | None = None
    if options.has_labels:
        split, labels = load_target(classifier, recipe, options.split, options.labels)
    elif is_flat := _flat_pictures(Path(recipe.dataset_name).expanduser()):
        split = _unlabelled(Path(recipe.dataset_name).expanduser(), is_flat)
    else:
        split = load_split(recipe, options.split, classifier.pixel_range)
    if options.corruption is not None:
        name, severity = options.corruption
        store: Any = CorruptedImages(
            split.images,
            name,
            severity,
            seed=0,
            most_pixels=max(32, classifier.transforms.image_size),
            device=classifier.device,
        )
        split = dataclasses.replace(split, images=store)
    return classifier, source_place, Place(split, labels)


def _flat_pictures(folder: Path) -> list[str]:
    """Return the pictures that lie in a folder itself; [] where it is laid out in another way."""
    if not folder.is_dir():
        return []
    return sorted(name for name, _ in pictures_below(folder, "") if os.sep not in name)


def _unlabelled(folder: Path, files: list[str]) -> Split:
    images = FileImages(folder, files, np.zeros(len(files), np.int64), ["picture", "-"])
    states = [(name, (folder / name).stat().st_mtime_ns) for name in files]
    request = SplitRequest(
        open=lambda scratch: images,
        identity=f"pictures {folder.resolve()}",
        source_state=json_digest(states),
        where=folder.name,
        data_path="auto",
        on_bad_image="error",
        deep=None,
    )
    store = load_images(request).store
    return Split("test", store, np.arange(len(store)), store.labels)


def _write(
    run: Path,
    out: Path,
    classifier: Classifier,
    source: Place,
    outcome: Outcome,
    facts: dict[str, Any],
    fresh: bool,
) -> None:
    """Write the adapted model with its figures on the source's test images, as a run."""
    recipe = load_recipe(str(run / "recipe.yaml"), {"output_dir": str(out)})
    recipe.dataset_name = data_recipe(str(run), None).dataset_name
    with RunFolder.reopen(run) as before:
        old = before.finished_metrics() or {}
    metrics = {name: value for name, value in old.items() if not name.startswith(OLD_FIGURES)}
    probabilities, labels = outcome.source.probabilities, source.labels
    assert labels is not None
    positive = find_positive(classifier.labels, old.get("positive_class"))
    metrics |= classification_metrics(
        probabilities, labels, classifier.labels, prefix="test", positive=positive
    )
    metrics |= {"run_name": out.name, "hub_model_id": None, "adaptation": facts}
    split = source.split
    with RunFolder.claim(recipe, fresh) as folder:
        folder.write_recipe(recipe)
        with folder.writing() as aside:
            # The run's threshold was chosen for the answers before.
            vars(classifier.model.config).pop("operating_point", None)
            classifier.model.save_pretrained(aside)
            classifier.transforms.processor.save_pretrained(aside)
            write_json(aside / "metrics.json", metrics)
            rows = np.arange(len(labels))
            write_predictions(aside, rows, labels, probabilities, classifier.labels)
            write_plots(
                aside,
                metrics,
                lambda rows: [split.images.picture(int(split.rows[row])) for row in rows],
            )
            write_card(aside)
