"""`hf-cifar verify`: does a model do what its card says?

The claim is set beside a measurement and its interval, with a verdict.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_cifar.data.load import check_classes, load_split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.card_claim import Claim, card_claim
from hf_cifar.evaluation.classifier import load_classifier, probabilities
from hf_cifar.evaluation.evaluate import data_recipe
from hf_cifar.evaluation.label_names import map_labels
from hf_cifar.evaluation.metrics import wilson
from hf_cifar.files import write_json, write_text
from hf_cifar.models.card import read_card
from hf_cifar.models.inspect_repo import CARD
from hf_cifar.text import visible

BATCH = 128


@dataclass(frozen=True)
class Verification:
    """A claim beside what was measured.

    commit: of the model, where it came from the Hub. accuracy: fraction in [0, 1]. interval: its
    95 % Wilson interval. verdict: "confirmed", "refuted" or "no claim". labels: the model's label
    -> the data's.
    """

    model: str
    commit: str | None
    dataset: str
    images: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    claim: Claim | None
    verdict: str
    labels: dict[str, str]


def verify(model: str, dataset: str, labels: str | None, out: Path | None) -> Verification:
    """Measure a model on the test split of a data set, compare the result with the claim on the
    model's card, and write verify.json and verify.md.

    model: Hub id, with @revision if wanted, or folder. dataset: as `dataset_name` in a recipe, with
    the last part of the name that cards use. labels: "theirs=ours,..." where names don't say what
    the model's labels mean. out: folder for the files; None: verify/ and the model's name.

    Raises UserError for a model, data or labels that can't be used.
    """
    given = parse_labels(labels)
    classifier = load_classifier(model)
    test = load_split(data_recipe("", dataset), "test", classifier.pixel_range)
    check_classes(dataset, [test])
    data_labels = list(test.images.label_names)
    mapping = map_labels(classifier.labels, data_labels, given)
    outputs = probabilities(classifier, test, batch_size=BATCH, bf16=False)
    correct = int((np.asarray(mapping)[outputs.argmax(1)] == test.labels).sum())
    interval = wilson(correct, len(test))
    files = classifier.files
    claim = card_claim(read_card(files.folder / CARD), dataset)
    result = Verification(
        model=files.repo,
        commit=files.commit,
        dataset=dataset,
        images=len(test),
        correct=correct,
        accuracy=correct / len(test),
        interval=interval,
        claim=claim,
        verdict=verdict(claim, interval),
        labels={
            label: data_labels[number]
            for label, number in zip(classifier.labels, mapping, strict=True)
        },
    )
    _write(result, out or Path("verify") / files.repo.strip("/").replace("/", "--"))
    return result


def verdict(claim: Claim | None, interval: tuple[float, float]) -> str:
    """Return "confirmed" where the claim lies in the interval widened by the claim's own rounding,
    "refuted" where it lies outside, and "no claim".

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


def summary(result: Verification) -> list[str]:
    """Return the outcome in three lines for a terminal."""
    low, high = (100 * bound for bound in result.interval)
    commit = f" at {result.commit[:12]}" if result.commit else ""
    claimed = "none in its model-index"
    if result.claim:
        of = f" of {result.claim.samples} images" if result.claim.samples else ""
        where = f"{result.claim.field}: {result.claim.text}"
        claimed = f"{100 * result.claim.accuracy:.2f} %{of} ({where})"
    measured = f"{100 * result.accuracy:.2f} % of {result.images} images"
    return [
        f"{result.model}{commit} on {result.dataset}",
        f"claimed {claimed}; measured {measured}, 95 % interval {low:.2f} to {high:.2f}",
        f"verdict: {result.verdict}",
    ]


def parse_labels(text: str | None) -> dict[str, str]:
    """Return what --labels says: the model's label -> the data's. Raises UserError."""
    pairs = [pair.split("=", 1) for pair in text.split(",")] if text is not None else []
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"--labels: write theirs=ours,theirs=ours,..., got {visible(text, 80)}")
    return {theirs.strip(): ours.strip() for theirs, ours in pairs}


def _write(result: Verification, folder: Path) -> None:
    """Write verify.json and verify.md. Raises UserError where the folder can't be written."""
    title, numbers, outcome = map(visible, summary(result))
    rows = [f"| {_cell(theirs)} | {_cell(ours)} |" for theirs, ours in result.labels.items()]
    report = [
        f"# {title}",
        "",
        f"{numbers[0].upper()}{numbers[1:]}.",
        "",
        f"**{outcome.capitalize()}**",
        "",
        "| the model's label | read as |",
        "|---|---|",
        *rows,
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "verify.json", dataclasses.asdict(result), indent=2)
        write_text(folder / "verify.md", "\n".join(report) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); name another folder with --out"
        ) from None


def _cell(text: str) -> str:
    """Return a label of others as plain text in a table."""
    return visible(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
