"""The test accuracy that a model card claims."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

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


@dataclass(frozen=True)
class Claim:
    """A test accuracy that a card claims."""

    accuracy: float  # fraction in [0, 1]
    rounding: float  # half of the last digit given, as a fraction
    field: str  # where it stands, such as model-index[0].results[0].metrics[0].value
    text: str  # as it is written there
    samples: int | None = None  # images that it was measured on, where the card says


def card_claim(card: str, dataset: str = "uoft-cs/cifar10") -> Claim | None:
    """The test accuracy that a card's `model-index` claims on `dataset`, or None.

    Takes fractions (0.9788) and percent (97.88, "97.88 %"). A result on the test split comes before
    one that names no split; one on another split is no claim about the test set.

    Args:
        card: the text of README.md, front matter included (or a ModelCard).
        dataset: Hub id or name of the data set.
    """
    front = re.match(
        r"\s*---\s*\n(.*?)\n---\s*(?:\n|$)",
        str(getattr(card, "content", card)).replace("\r\n", "\n"),
        re.S,
    )
    if front is None:
        return None
    try:
        # BaseLoader keeps the text of numbers: 97.80 was rounded to two digits, and a float would
        # say one.
        data = yaml.load(front[1], Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return None
    found = list(_claims(data, dataset))
    return min(found, key=lambda claim: claim[0])[1] if found else None


def _claims(data: Any, dataset: str) -> Iterator[tuple[int, Claim]]:
    """(0 for the test split and 1 for none named, claim), in the card's order."""
    for i, model in enumerate(_list(data, "model-index")):
        for j, result in enumerate(_list(model, "results")):
            about = result.get("dataset") if isinstance(result, dict) else None
            if not isinstance(about, dict) or not any(
                _names(about.get(key), dataset) for key in ("type", "name")
            ):
                continue
            split = str(about.get("split") or "").lower()
            if split and not split.startswith("test"):
                continue
            samples = _samples(about)
            for k, metric in enumerate(_list(result, "metrics")):
                if not isinstance(metric, dict):
                    continue
                called = {
                    re.sub(r"[\W_]+", " ", str(metric.get(key, ""))).strip().lower()
                    for key in ("type", "name")
                }
                claim = _number(
                    metric.get("value"), f"model-index[{i}].results[{j}].metrics[{k}].value"
                )
                if called & ACCURACY_NAMES and claim is not None:
                    yield (0 if split else 1), dataclasses.replace(claim, samples=samples)


def _list(data: Any, key: str) -> list[Any]:
    found = data.get(key) if isinstance(data, dict) else None
    return found if isinstance(found, list) else []


def _samples(about: dict[str, Any]) -> int | None:
    """The number of images in `dataset.args.samples`, where it is one."""
    args = about.get("args")
    told = str(args.get("samples")) if isinstance(args, dict) else ""
    return int(told) or None if re.fullmatch(r"\d{1,9}", told, re.ASCII) else None


def _names(text: Any, dataset: str) -> bool:
    """Whether `text` names the data set: cifar10 is CIFAR-10 and uoft-cs/cifar10, and is not
    cifar100.
    """
    parts = re.findall(r"[a-z]+|\d+", dataset.rsplit("/", 1)[-1].lower())
    pattern = r"(?<![a-z0-9])" + r"[\W_]*".join(parts) + r"(?![a-z0-9])"
    return (
        isinstance(text, str)
        and bool(parts)
        and re.search(pattern, text.lower().replace("_", " ")) is not None
    )


def _number(value: Any, field: str) -> Claim | None:
    digits = (
        re.search(r"\d+(?:\.(\d+))?(?:[eE]([+-]?\d+))?", value) if isinstance(value, str) else None
    )
    if digits is None:
        return None
    number = float(digits[0])
    rounding = 0.5 * 10.0 ** (int(digits[2] or 0) - len(digits[1] or ""))
    if "%" in str(value) or number > 1:
        number, rounding = number / 100, rounding / 100
    return Claim(number, rounding, field, str(value)) if number <= 1 else None
