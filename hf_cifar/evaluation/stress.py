"""`hf-cifar stress`: what corruptions of the pictures cost a model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tv

from hf_cifar.augmentation.corruptions import BENCHMARK, CORRUPTIONS, corrupt, left_out
from hf_cifar.data.image_store import ImageStore
from hf_cifar.data.load import load_split
from hf_cifar.data.splits import Split, first_rows
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import Classifier, load_classifier, probabilities
from hf_cifar.evaluation.metrics import calibration, nll
from hf_cifar.evaluation.target_data import labels_of_model, load_target, target_recipe
from hf_cifar.recipe.recipe import Recipe, public_name
from hf_cifar.training.precision import fastest_precision

log = logging.getLogger(__name__)


class CorruptedImages:
    """Images that come out of `batch` corrupted; otherwise like the `ImageStore` that it wraps.

    Pictures whose shorter side is longer than the model's input are first shrunk to it, because the
    constants are those for small pictures.
    """

    def __init__(
        self,
        images: ImageStore,
        name: str,
        severity: int,
        *,
        seed: int,
        most_pixels: int,
        device: torch.device,
    ) -> None:
        self.images, self.name, self.severity, self.seed = images, name, severity, seed
        self.most_pixels, self.device = most_pixels, device
        self.label_names, self.labels = images.label_names, images.labels
        self.fingerprint, self.bad = images.fingerprint, images.bad
        self.size, self.pixels = images.size, None

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        """Return uint8 [B, 3, H, W], or a list of uint8 [3, H, W] where sizes differ."""
        images = self.images.batch(rows)
        if isinstance(images, torch.Tensor):
            return self._corrupt(images, rows)
        return [
            self._corrupt(image[None], rows[i : i + 1])[0].cpu() for i, image in enumerate(images)
        ]

    def _corrupt(self, images: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        images = images.to(self.device)
        if min(images.shape[-2:]) > self.most_pixels:
            images = tv.resize(images, [self.most_pixels], antialias=True)
        index = torch.from_numpy(np.asarray(rows, np.int64)).to(self.device)
        return corrupt(images, self.name, self.severity, index, self.seed)

    def picture(self, row: int) -> np.ndarray:
        """Return one image as uint8 [H, W, 3], RGB."""
        batch = self.batch(np.array([row]))
        return batch[0].permute(1, 2, 0).cpu().numpy()

    def looks(self, rows: np.ndarray) -> np.ndarray:
        """Return `LOOK` [n] of the images before the corruption."""
        return self.images.looks(rows)


@dataclass(frozen=True)
class Options:
    """What to measure, and how. corruptions: names. severities: of 1 to 5."""

    corruptions: Sequence[str] = BENCHMARK
    severities: Sequence[int] = (1, 2, 3, 4, 5)
    split: str = "test"
    batch_size: int = 128
    precision: str = "auto"
    seed: int = 0
    labels: dict[str, str] | None = None


def parse_severities(text: str) -> list[int]:
    """Return the severities that "3", "1,3,5" or "1-5" means. Raises UserError."""
    severities: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        known = first in list("12345") and (not dash or last in list("12345"))
        if not known or (dash and first > last):
            raise UserError(f"--severity: write 1 to 5, such as 3, 1,3,5 or 1-5; got {text}")
        severities |= set(range(int(first), int(last or first) + 1))
    return sorted(severities)


def parse_corruptions(text: str | None) -> list[str]:
    """Return the corruptions that are named, "extra" and "all" included; None: the benchmark's.

    Raises UserError for a name that there is not.
    """
    if text is None:
        return list(BENCHMARK)
    if text == "all":
        return list(CORRUPTIONS)
    names = [name.strip().replace("-", "_") for name in text.split(",")]
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise UserError(
            f"--corruptions: there is no {unknown[0]!r}; choose from {', '.join(CORRUPTIONS)}, or"
            " write all"
        )
    return list(dict.fromkeys(names))


def stress(
    model: str, dataset: str | None, keys: dict[str, Any], options: Options, against: str | None
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return what corruptions cost a model, as JSON types, and the pictures of its `worst`.

    clean: accuracy without corruption; None where only corrupted images are published. corruptions:
    accuracy by name and severity. nll, ece: likewise. mean_error: the mean over the benchmark's
    corruptions and the severities, a fraction. left_out: what could not be measured, with reasons.
    worst: for each corruption the picture that the model gets right as it is, and most surely wrong
    when corrupted. against: the same of the second model, with `relative_mean_error`: the mean over
    corruptions of one model's errors divided by the other's.

    dataset, keys: as in `target_recipe`; a folder of CIFAR-10-C's files takes the place of
    corruptions that are computed. Raises UserError for input that can't be used.
    """
    recipe = target_recipe(model, dataset, keys)
    result, pictures = _measure(model, recipe, options)
    if against is not None:
        other, _ = _measure(against, recipe, options)
        other["relative_mean_error"] = relative_mean_error(result, other)
        result["against"] = other
    return result, pictures


def relative_mean_error(first: dict[str, Any], second: dict[str, Any]) -> float | None:
    """Return the mean over the benchmark's corruptions of the first model's summed errors divided
    by the second's (Hendrycks and Dietterich 2019, section 4.2); None without any errors.
    """
    ratios = []
    for name in _in_mean(first["corruptions"]):
        ours, theirs = (
            sum(1 - accuracy for accuracy in each["corruptions"][name].values())
            for each in (first, second)
        )
        if theirs:
            ratios.append(ours / theirs)
    return float(np.mean(ratios)) if ratios else None


def _in_mean(names: Any) -> list[str]:
    """Return the names that count for the mean: the benchmark's, or all where there are none."""
    return [name for name in names if name in BENCHMARK] or list(names)


def _measure(
    model: str, recipe: Recipe, options: Options
) -> tuple[dict[str, Any], list[np.ndarray]]:
    classifier = load_classifier(model)
    (bf16, channels_last), _ = fastest_precision(
        classifier.model,
        classifier.transforms.image_size,
        classifier.device,
        bf16=None if options.precision == "auto" else options.precision == "bf16",
    )

    def answers(split: Split) -> np.ndarray:
        return probabilities(
            classifier,
            split,
            batch_size=options.batch_size,
            bf16=bf16,
            channels_last=channels_last,
        )

    published = published_files(recipe.dataset_name)
    absent = (
        {name: "there is no such file" for name in options.corruptions if name not in published}
        if published
        else left_out(list(options.corruptions))
    )
    names = [name for name in options.corruptions if name not in absent]
    if not names:
        raise UserError(
            f"--corruptions: nothing is left to measure ({', '.join(absent)}: "
            f"{next(iter(absent.values()))})"
        )
    for name, reason in absent.items():
        log.warning("%s: left out: %s", name, reason)
    result: dict[str, Any] = {"model": public_name(model), "clean": None, "corruptions": {}}
    result |= {"nll": {}, "ece": {}, "left_out": absent, "worst": []}
    result |= {"dataset": public_name(recipe.dataset_name), "precision": "bf16" if bf16 else "fp32"}
    right: np.ndarray | None = None
    split: Split | None = None
    if not published:
        split, labels = load_target(classifier, recipe, options.split, options.labels)
        clean = answers(split)
        right = clean.argmax(1) == labels
        scores = _scores(clean, labels)
        result |= {"clean": scores["accuracy"], "images": len(split)}
        result["nll"]["clean"], result["ece"]["clean"] = scores["nll"], scores["ece"]
        log.info("clean: accuracy %.4f of %d images", scores["accuracy"], len(split))
    pictures: list[np.ndarray] = []
    for name in names:
        worst: tuple[float, dict[str, Any], Split] | None = None
        for severity, images, labels in _severities(
            classifier, recipe, split, published, name, options
        ):
            outputs = answers(images)
            scores = _scores(outputs, labels)
            result.setdefault("images", len(images))
            result["corruptions"].setdefault(name, {})[str(severity)] = scores["accuracy"]
            result["nll"].setdefault(name, {})[str(severity)] = scores["nll"]
            result["ece"].setdefault(name, {})[str(severity)] = scores["ece"]
            wrong = outputs.argmax(1) != labels
            sure = np.where(wrong if right is None else wrong & right, outputs.max(1), 0.0)
            row = int(sure.argmax())
            if sure[row] > (worst[0] if worst else 0.0):
                fact = {
                    "corruption": name,
                    "severity": severity,
                    "row": int(images.rows[row]),
                    "label": classifier.labels[int(labels[row])],
                    "prediction": classifier.labels[int(outputs[row].argmax())],
                    "probability": float(sure[row]),
                }
                worst = (float(sure[row]), fact, images)
        by_severity = result["corruptions"][name]
        log.info("%s: %s", name, ", ".join(f"{s}: {a:.4f}" for s, a in by_severity.items()))
        if worst is not None:
            result["worst"].append(worst[1])
            pictures.append(worst[2].images.picture(worst[1]["row"]))
    errors = [1 - a for n in _in_mean(names) for a in result["corruptions"][n].values()]
    result["mean_error"] = float(np.mean(errors))
    return result, pictures


def _severities(
    classifier: Classifier,
    recipe: Recipe,
    clean: Split | None,
    published: dict[str, Path],
    name: str,
    options: Options,
) -> Iterator[tuple[int, Split, np.ndarray]]:
    """Yield each severity of a corruption with its images and their labels."""
    if clean is not None:
        labels = labels_of_model(classifier.labels, clean, options.labels)
        for severity in options.severities:
            store: Any = CorruptedImages(
                clean.images,
                name,
                severity,
                seed=options.seed,
                most_pixels=max(32, classifier.transforms.image_size),
                device=classifier.device,
            )
            yield severity, dataclasses.replace(clean, images=store), labels
        return
    whole = dataclasses.replace(recipe, dataset_name=str(published[name]), max_eval_samples=None)
    images = load_split(whole, "test")
    each, rest = divmod(len(images), 5)
    if rest or not each:
        raise UserError(
            f"{published[name].name} has {len(images)} images; CIFAR-10-C's files hold five"
            " severities of equal length; name the file itself as --dataset to score it as a whole"
        )
    for severity in options.severities:
        rows = np.arange((severity - 1) * each, severity * each)
        if recipe.max_eval_samples:
            rows = rows[first_rows(images.labels[rows], recipe.max_eval_samples)]
        part = dataclasses.replace(images, rows=images.rows[rows], labels=images.labels[rows])
        yield severity, part, labels_of_model(classifier.labels, part, options.labels)


def published_files(dataset: str) -> dict[str, Path]:
    """Return the files of a folder that is laid out as CIFAR-10-C, by corruption; {} for others."""
    folder = Path(dataset).expanduser()
    if not (folder / "labels.npy").is_file():
        return {}
    files = {name: folder / f"{name}.npy" for name in CORRUPTIONS}
    return {name: file for name, file in files.items() if file.is_file()}


def _scores(outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": float((outputs.argmax(1) == labels).mean()),
        "nll": nll(outputs, labels)["nll"],
        "ece": float(calibration(outputs, labels)["ece"]),
    }
