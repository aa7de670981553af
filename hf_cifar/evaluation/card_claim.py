"""The test accuracy that a model card claims."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hf_cifar.models.card import card_metadata

ACCURACY_NAMES = {
    "accuracy",
    "acc",
    "test accuracy",
    "eval accuracy",
    "top 1 accuracy",
    "top1 accuracy",
    "acc 1",
    "top 1",
}
MAX_NAME = 200  # characters of a name on a card that are looked at
NUMBER = re.compile(r"\d{1,20}(?:\.(\d{1,20}))?(?:[eE]([+-]?\d{1,2}))?")


@dataclass(frozen=True)
class Claim:
    """A test accuracy that a card claims.

    accuracy: fraction in [0, 1]. rounding: half of the last digit given, as a fraction. field:
    where it stands, such as model-index[0].results[0].metrics[0].value. text: as it is written
    there. samples: images that it was measured on, where the card says.
    """

    accuracy: float
    rounding: float
    field: str
    text: str
    samples: int | None = None


def card_claim(card: str, dataset: str = "uoft-cs/cifar10") -> Claim | None:
    """Return the test accuracy that a card's `model-index` claims on `dataset`, or None.

    Fractions (0.9788) and percent (97.88, "97.88 %") are understood. A result on the test split
    comes before one that names no split; one on another split is no claim about the test set.

    card: the text of README.md. dataset: Hub id or name of the data set.
    """
    claims = list(_claims(card_metadata(card), dataset))
    return min(claims, key=lambda ranked: ranked[0])[1] if claims else None


def _claims(metadata: dict[str, Any], dataset: str) -> Iterator[tuple[int, Claim]]:
    """Yield the claims in the card's order, each after 0 for the test split or 1 for none named."""
    for i, model in enumerate(_list(metadata, "model-index")):
        for j, result in enumerate(_list(model, "results")):
            about = result.get("dataset") if isinstance(result, dict) else None
            if not isinstance(about, dict):
                continue
            split = str(about.get("split") or "").lower()
            named = any(_is_dataset(about.get(key), dataset) for key in ("type", "name"))
            if not named or (split and not split.startswith("test")):
                continue
            samples = _samples(about)
            for k, metric in enumerate(_list(result, "metrics")):
                field = f"model-index[{i}].results[{j}].metrics[{k}].value"
                claim = _accuracy(metric, field)
                if claim is not None:
                    yield (0 if split else 1), dataclasses.replace(claim, samples=samples)


def _list(value: Any, key: str) -> list[Any]:
    entry = value.get(key) if isinstance(value, dict) else None
    return entry if isinstance(entry, list) else []


def _samples(about: dict[str, Any]) -> int | None:
    """Return the number of images in `dataset.args.samples`, where it is one."""
    arguments = about.get("args")
    text = str(arguments.get("samples")) if isinstance(arguments, dict) else ""
    return int(text) or None if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None


def _is_dataset(text: Any, dataset: str) -> bool:
    """Return whether `text` names the data set: cifar10 is CIFAR-10 and uoft-cs/cifar10, and is not
    cifar100.
    """
    parts = re.findall(r"[a-z]+|\d+", dataset.rsplit("/", 1)[-1].lower())
    if not isinstance(text, str) or not parts:
        return False
    pattern = r"(?<![a-z0-9])" + r"[\W_]*".join(parts) + r"(?![a-z0-9])"
    return re.search(pattern, text[:MAX_NAME].lower().replace("_", " ")) is not None


def _accuracy(metric: Any, field: str) -> Claim | None:
    """Return the claim in one entry of `metrics`, or None if it is another metric or no number."""
    if not isinstance(metric, dict):
        return None
    names = {
        re.sub(r"[\W_]+", " ", str(metric.get(key, ""))[:MAX_NAME]).strip().lower()
        for key in ("type", "name")
    }
    value = metric.get("value")
    if not isinstance(value, str) or not names & ACCURACY_NAMES:
        return None
    number = NUMBER.search(value)
    if number is None:
        return None
    accuracy = float(number[0])
    rounding = 0.5 * 10.0 ** (int(number[2] or 0) - len(number[1] or ""))
    if "%" in value or accuracy > 1:
        accuracy, rounding = accuracy / 100, rounding / 100
    return Claim(accuracy, rounding, field, value[:MAX_NAME]) if accuracy <= 1 else None
