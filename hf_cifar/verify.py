"""Does a model do what its card says? The claim beside a measurement and its interval, and a verdict.

The measurement itself is handed in as a function, so this module knows nothing of how models are run.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_cifar.errors import UserError
from hf_cifar.metrics import wilson
from hf_cifar.model_repo import fetch_model

# What else the ten classes are called on model cards and in other data sets.
SYNONYMS = {
    "airplane": ("plane", "aeroplane", "aircraft", "jet", "airliner"),
    "automobile": ("car", "auto", "motorcar"),
    "bird": (),
    "cat": ("kitty",),
    "deer": ("stag",),
    "dog": ("puppy",),
    "frog": ("toad",),
    "horse": ("pony",),
    "ship": ("boat", "vessel"),
    "truck": ("lorry",),
}
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


@dataclass(frozen=True)
class Verification:
    """A claim beside what was measured. `verdict` is "confirmed", "refuted" or "no claim"."""

    model: str
    commit: str | None
    dataset: str
    images: int
    correct: int
    accuracy: float  # fraction in [0, 1]
    interval: tuple[float, float]  # Wilson, 95 %
    claim: Claim | None
    verdict: str
    labels: dict[str, str]  # the model's label -> the data set's
    report: Path  # folder with verify.json and verify.md


def _plain(label: str) -> str:
    """One spelling for `Fire_Truck`, `fire truck` and `fire-trucks`."""
    words = re.sub(r"[\W_]+", " ", label).strip().lower()
    for ending, instead in (("sses", "ss"), ("ies", "y"), ("s", "")):
        if words.endswith(ending) and not (ending == "s" and words.endswith("ss")) and len(words) > len(ending) + 1:
            return words.removesuffix(ending) + instead
    return words


def map_labels(model_labels: list[str], data_labels: list[str], told: dict[str, str] | None = None) -> list[int]:
    """Which class of the data each class of the model means.

    By what was `told` (model's label -> data's), by the same name, by a like one (whatever the case, the separators and the
    plural), by the synonyms of CIFAR-10's classes, and by index for `LABEL_3` or `3` where both have as many classes.

    Returns:
        For each index in `model_labels` an index in `data_labels`.

    Raises:
        UserError: labels that nothing maps, or two labels of the model that would mean one class without being told.
    """
    ours = {_plain(label): index for index, label in enumerate(data_labels)}
    known = dict(ours)
    for name, others in SYNONYMS.items():
        if _plain(name) in ours:
            for other in others:
                known.setdefault(_plain(other), ours[_plain(name)])

    def meant(label: str) -> int | None:
        if data_labels.count(label) == 1:  # `A` beside `a` and `C#` beside `C++` are spelled alike below
            return data_labels.index(label)
        return known.get(_plain(label))

    hint = 'tell with --labels "theirs=ours,..."'
    explicit: dict[str, int] = {}
    for theirs, label in (told or {}).items():
        if theirs not in model_labels:
            raise UserError(f"--labels: the model has no label {theirs!r}; it has {_listed(model_labels)}")
        if (index := meant(label)) is None:
            raise UserError(f"--labels: the data has no label {label!r}; it has {_listed(data_labels)}")
        explicit[theirs] = index

    numbers = [re.fullmatch(r"(?:label[\s_-]*)?(\d+)", label.strip(), re.IGNORECASE) for label in model_labels]
    by_index = len(model_labels) == len(data_labels) and {int(n[1]) for n in numbers if n} == set(range(len(data_labels)))
    mapped: list[int | None] = []
    for label, number in zip(model_labels, numbers, strict=True):
        if label in explicit:
            mapped.append(explicit[label])
        elif (index := meant(label)) is not None:
            mapped.append(index)
        else:
            mapped.append(int(number[1]) if number and by_index else None)
    unmapped = [label for label, index in zip(model_labels, mapped, strict=True) if index is None]
    if unmapped:
        raise UserError(
            f"{len(unmapped)} labels of the model mean no class of the data: {_listed(unmapped)}; "
            f"the data has {_listed(data_labels)}; {hint}"
        )
    taken: dict[int, str] = {}
    for label, index in zip(model_labels, mapped, strict=True):
        assert index is not None
        if index in taken and label not in explicit:
            both = f"{taken[index]!r} and {label!r}"
            raise UserError(f"the model's labels {both} would both mean {data_labels[index]!r}; {hint}")
        taken[index] = label
    return [index for index in mapped if index is not None]


def _listed(labels: Sequence[str], most: int = 20) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


def card_claim(card: str, dataset: str = "uoft-cs/cifar10") -> Claim | None:
    """The test accuracy that a card's `model-index` claims on `dataset`, or None.

    Takes fractions (0.9788) and percent (97.88, "97.88 %"). A result on the test split comes before one that names no
    split; one on another split is no claim about the test set.

    Args:
        card: the text of README.md, front matter included (or a ModelCard).
        dataset: Hub id or name of the data set.
    """
    front = re.match(r"\s*---\s*\n(.*?)\n---\s*(?:\n|$)", str(getattr(card, "content", card)).replace("\r\n", "\n"), re.S)
    if front is None:
        return None
    try:
        # BaseLoader keeps the text of numbers: 97.80 was rounded to two digits, and a float would say one.
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
            if not isinstance(about, dict) or not any(_names(about.get(key), dataset) for key in ("type", "name")):
                continue
            split = str(about.get("split") or "").lower()
            if split and not split.startswith("test"):
                continue
            samples = _samples(about)
            for k, metric in enumerate(_list(result, "metrics")):
                if not isinstance(metric, dict):
                    continue
                called = {re.sub(r"[\W_]+", " ", str(metric.get(key, ""))).strip().lower() for key in ("type", "name")}
                claim = _number(metric.get("value"), f"model-index[{i}].results[{j}].metrics[{k}].value")
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
    """Whether `text` names the data set: cifar10 is CIFAR-10 and uoft-cs/cifar10, and is not cifar100."""
    parts = re.findall(r"[a-z]+|\d+", dataset.rsplit("/", 1)[-1].lower())
    pattern = r"(?<![a-z0-9])" + r"[\W_]*".join(parts) + r"(?![a-z0-9])"
    return isinstance(text, str) and bool(parts) and re.search(pattern, text.lower().replace("_", " ")) is not None


def _number(value: Any, field: str) -> Claim | None:
    digits = re.search(r"\d+(?:\.(\d+))?(?:[eE]([+-]?\d+))?", value) if isinstance(value, str) else None
    if digits is None:
        return None
    number = float(digits[0])
    rounding = 0.5 * 10.0 ** (int(digits[2] or 0) - len(digits[1] or ""))
    if "%" in str(value) or number > 1:
        number, rounding = number / 100, rounding / 100
    return Claim(number, rounding, field, str(value)) if number <= 1 else None


def verdict(claim: Claim | None, interval: tuple[float, float]) -> str:
    """ "confirmed" where the claim lies in the interval widened by the claim's own rounding, else "refuted".

    A claim that names its number of images has an interval of its own, which only has to overlap the measured one.
    """
    if claim is None:
        return "no claim"
    low, high = interval
    slack = claim.rounding + 1e-12
    least = most = claim.accuracy
    if claim.samples:
        least, most = wilson(round(claim.accuracy * claim.samples), claim.samples)
    return "confirmed" if low - slack <= most and least <= high + slack else "refuted"


def verify(
    model: str,
    *,
    dataset: str,
    data: Any,
    data_labels: list[str],
    evaluate: Callable[[str, Any], tuple[np.ndarray, np.ndarray]],
    labels: dict[str, str] | None = None,
    revision: str | None = None,
    out: Path = Path("verify"),
    say: Callable[[str], None] = print,
) -> Verification:
    """Measures a model on `data` and sets the result beside its card's claim.

    Args:
        model: Hub id (with @revision if wanted) or folder.
        dataset: the data set's name, as cards name it (uoft-cs/cifar10).
        data: the test set, handed on to `evaluate` as it is.
        data_labels: class names in label order.
        evaluate: (local model folder, data) -> predictions int [N] in the model's label order, labels int [N] in the
            data's.
        labels: the model's label -> the data's, where names don't say.
        out: folder for verify.json and verify.md.

    Raises:
        UserError: the model can't be had or is none (`fetch_model`), or its labels can't be mapped.
    """
    folder, commit = fetch_model(model, revision)
    theirs = _model_labels(folder)
    mapping = map_labels(theirs, data_labels, labels)
    card = folder / "README.md"
    claim = card_claim(card.read_text(encoding="utf-8", errors="replace"), dataset) if card.is_file() else None

    predictions, truth = evaluate(str(folder), data)
    predictions, truth = np.asarray(predictions), np.asarray(truth)
    if predictions.shape != truth.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(f"evaluate gave predictions {predictions.shape} and labels {truth.shape}; both must be [N]")
    correct = int((np.asarray(mapping)[predictions] == truth).sum())
    interval = wilson(correct, len(truth))
    result = Verification(
        model=model,
        commit=commit,
        dataset=dataset,
        images=len(truth),
        correct=correct,
        accuracy=correct / len(truth),
        interval=interval,
        claim=claim,
        verdict=verdict(claim, interval),
        labels={label: data_labels[index] for label, index in zip(theirs, mapping, strict=True)},
        report=out,
    )
    _write(result)
    for line in summary(result):
        say(line)
    return result


def _model_labels(folder: Path) -> list[str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if named := config.get("id2label"):
        return [str(named[key]) for key in sorted(named, key=int)]
    if names := config.get("label_names"):  # timm
        return [str(name) for name in names]
    count = config.get("num_labels") or config.get("num_classes") or 2  # transformers' default
    return [f"LABEL_{index}" for index in range(int(count))]


def summary(result: Verification) -> list[str]:
    """The outcome in three lines for a terminal."""
    low, high = result.interval
    at = f" at {result.commit[:12]}" if result.commit else ""
    claimed = "none in its model-index"
    if result.claim:
        of = f" of {result.claim.samples} images" if result.claim.samples else ""
        claimed = f"{100 * result.claim.accuracy:.2f} %{of} ({result.claim.field}: {result.claim.text})"
    measured = f"{100 * result.accuracy:.2f} % of {result.images} images"
    return [
        f"{result.model}{at} on {result.dataset}",
        f"claimed {claimed}; measured {measured}, 95 % interval {100 * low:.2f} to {100 * high:.2f}",
        f"verdict: {result.verdict}",
    ]


def _write(result: Verification) -> None:
    result.report.mkdir(parents=True, exist_ok=True)
    facts = dataclasses.asdict(result)
    del facts["report"]
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    (result.report / "verify.json").write_text(text, encoding="utf-8")
    head, numbers, outcome = summary(result)
    rows = "\n".join(f"| {theirs} | {ours} |" for theirs, ours in result.labels.items())
    text = f"# {head}\n\n{numbers[0].upper()}{numbers[1:]}.\n\n**{outcome.capitalize()}**\n\n"
    text += f"| the model's label | read as |\n|---|---|\n{rows}\n"
    (result.report / "verify.md").write_text(text, encoding="utf-8")
