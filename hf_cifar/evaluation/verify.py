"""Does a model do what its card says? The claim beside a measurement and its interval, and a
verdict.

The measurement itself is handed in as a function, so this module knows nothing of how models are
run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.data.load import load_split
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.card_claim import Claim, card_claim
from hf_cifar.evaluation.classifier import load_classifier, probabilities
from hf_cifar.evaluation.evaluate import data_recipe
from hf_cifar.evaluation.label_names import map_labels
from hf_cifar.evaluation.metrics import wilson
from hf_cifar.models.inspect_repo import fetch_model, resolve_model


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


def verdict(claim: Claim | None, interval: tuple[float, float]) -> str:
    """ "confirmed" where the claim lies in the interval widened by the claim's own rounding, else
    "refuted".

    A claim that names its number of images has an interval of its own, which only has to overlap
    the measured one.
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
        evaluate: (local model folder, data) -> predictions int [N] in the model's label order,
        labels int [N] in the
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
    claim = (
        card_claim(card.read_text(encoding="utf-8", errors="replace"), dataset)
        if card.is_file()
        else None
    )

    predictions, truth = evaluate(str(folder), data)
    predictions, truth = np.asarray(predictions), np.asarray(truth)
    if predictions.shape != truth.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(
            f"evaluate gave predictions {predictions.shape} and labels {truth.shape}; both must be [N]"
        )
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
        claimed = (
            f"{100 * result.claim.accuracy:.2f} %{of} ({result.claim.field}: {result.claim.text})"
        )
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


def verify_model(model: str, dataset: str, labels: str | None, out: Path | None) -> int:
    """`verify.verify` on the test split of `dataset`; the command's exit code: 1 where the card's
    claim is refuted.
    """
    told = None
    if labels is not None:
        pairs = [pair.split("=", 1) for pair in labels.split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise UserError("--labels: takes theirs=ours,theirs=ours,...")
        told = {a.strip(): b.strip() for a, b in pairs}
    name, revision = resolve_model(model)
    images = load_split(data_recipe("", dataset), "test")

    def measure(folder: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
        found = probabilities(load_classifier(folder), split, batch_size=128, bf16=False)
        return found.argmax(1), split.labels

    result = verify(
        name,
        dataset=dataset,
        data=images,
        data_labels=list(images.images.label_names),
        evaluate=measure,
        labels=told,
        revision=revision,
        out=out or Path("verify") / name.strip("/").replace("/", "--"),
    )
    return 1 if result.verdict == "refuted" else 0
