"""Whether one of two classifiers is better by more than chance, from their answers to the same
images.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from hf_cifar.data.load import load_split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.evaluate import data_recipe
from hf_cifar.evaluation.metrics import wilson

PREDICTIONS = "predictions.parquet"
ONE_LABEL, SEVERAL_LABELS = ["label", "prediction"], ["labels", "predictions"]  # columns
RESAMPLES = 10_000
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class PairedTest:
    """Two classifiers on the same images.

    only_first_right, only_second_right: images that one of them alone gets right. p_value: of "both
    are right equally often", by McNemar's exact test. difference: accuracy of the first less that
    of the second, with its 95 % bootstrap interval (low, high).
    """

    images: int
    only_first_right: int
    only_second_right: int
    p_value: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Answers:
    """A run's answers to its test images.

    labels, predictions: int64 [n], the numbers of classes; or bool [n, C], which labels each image
    has, where it can have any number. label_names: C names. identity: metrics.json's digest of the
    run's data; None where it is not there.
    """

    run: str
    labels: np.ndarray
    predictions: np.ndarray
    label_names: list[str]
    identity: str | None

    @property
    def correct(self) -> np.ndarray:
        """Which images are right, bool [n]: in all of their labels."""
        same = self.labels == self.predictions
        return same.all(axis=1) if same.ndim > 1 else same


def paired_test(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> PairedTest:
    """Return the test of two classifiers, from what each gets right of the same images, bool [n].

    seed: of the bootstrap, which draws the images anew 10,000 times.
    """
    images = len(first)
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    # An image counts +1, -1 or 0 for the difference, so drawing images is drawing these counts.
    shares = np.array([only_first, only_second, images - differing]) / images
    random = np.random.Generator(np.random.Philox(seed))
    counts = random.multinomial(images, shares, size=RESAMPLES)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / images, [0.025, 0.975])
    difference = (only_first - only_second) / images
    return PairedTest(images, only_first, only_second, p_value, difference, float(low), float(high))


def compare_runs(runs: list[str]) -> dict[str, Any]:
    """Return paired tests of every two of some finished runs, on the test images of all of them.

    `runs` has the accuracy of each with its 95 % Wilson interval. `pairs` has the `PairedTest` of
    every two, and `p_adjusted`, Holm's correction of the p-value for the number of pairs.
    `sentence` says whether the best run is better by more than chance. Raises UserError for runs
    without predictions, and for runs that were scored on other images.
    """
    answers = [read_answers(run) for run in runs]
    for other in answers[1:]:
        _check_same_images(answers[0], other)
    scores = []
    for answer in answers:
        right = int(answer.correct.sum())
        low, high = wilson(right, len(answer.labels))
        scores.append(
            {"run": answer.run, "accuracy": right / len(answer.labels), "low": low, "high": high}
        )
    pairs = [
        {"first": first.run, "second": second.run}
        | asdict(paired_test(first.correct, second.correct))
        for first, second in itertools.combinations(answers, 2)
    ]
    adjusted = holm([pair["p_value"] for pair in pairs])
    pairs = [pair | {"p_adjusted": value} for pair, value in zip(pairs, adjusted, strict=True)]
    result = {"images": len(answers[0].labels), "runs": scores, "pairs": pairs}
    return result | {"sentence": verdict(result)}


def holm(p_values: list[float]) -> list[float]:
    """Return the p-values corrected for their number (Holm 1979), in the same order."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def verdict(result: dict[str, Any]) -> str:
    """Return a sentence on the best run of what `compare_runs` returns, and the one after it."""
    ranked = sorted(result["runs"], key=lambda run: -run["accuracy"])
    best, next_best = ranked[0]["run"], ranked[1]["run"]
    pair = next(p for p in result["pairs"] if {p["first"], p["second"]} == {best, next_best})
    sign = 1 if pair["first"] == best else -1
    low, high = sorted((100 * sign * pair["low"], 100 * sign * pair["high"]))
    numbers = (
        f"{100 * abs(pair['difference']):.2f} points on {result['images']:,} images (95 % interval"
        f" {low:.2f} to {high:.2f}, McNemar's exact p = {pair['p_adjusted']:.2g})"
    )
    if pair["p_adjusted"] < SIGNIFICANCE:
        return f"{best} is better than {next_best} by {numbers}, which is more than chance."
    return f"{best} and {next_best} differ by {numbers}, which is no more than chance would give."


def read_answers(run: str) -> Answers:
    """Return a run's answers to its test images. Raises UserError for a run that has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(run).expanduser()
    path = folder / PREDICTIONS
    if not path.is_file():
        raise UserError(
            f"{run}: it has no {PREDICTIONS}, because its data had no test split; train it on data"
            " with one"
        )
    try:
        several = "labels" in pq.read_schema(path).names
        table = pq.read_table(path, columns=SEVERAL_LABELS if several else ONE_LABEL)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        label = features["labels"]["feature"] if several else features["label"]
        names = [str(name) for name in label["names"]]
        if several:
            columns = [_membership(column, len(names)) for column in table.columns]
        else:
            columns = [column.to_numpy().astype(np.int64) for column in table.columns]
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException):
        raise UserError(
            f"{path}: damaged, or not of this program; evaluate or train the run again"
        ) from None
    labels, predictions = columns
    if not len(labels):
        raise UserError(f"{path}: it holds no image; train the run on data with a test split")
    return Answers(run, labels, predictions, names, metrics.get("dataset_fingerprint"))


def _membership(lists: Any, labels: int) -> np.ndarray:
    """Return which labels each list of label numbers holds, bool [n, labels]."""
    members = np.zeros((len(lists), labels), bool)
    for row, numbers in enumerate(lists.to_pylist()):
        members[row, numbers] = True
    return members


def _check_same_images(first: Answers, second: Answers) -> None:
    """Raise UserError unless two runs were scored on the same images.

    Runs whose data differ only in train have other digests, so their test splits are compared then.
    """
    advice = "give them the same data keys and seed"
    if first.label_names != second.label_names:
        raise UserError(
            f"{first.run} and {second.run} know other classes, so they were scored on other images;"
            f" {advice}"
        )
    if len(first.labels) != len(second.labels):
        raise UserError(
            f"{first.run} was scored on {len(first.labels):,} images and {second.run} on"
            f" {len(second.labels):,}; {advice}"
        )
    same = np.array_equal(first.labels, second.labels)
    if same and (first.identity is None or first.identity != second.identity):
        splits = [load_split(data_recipe(answer.run, None), "test") for answer in (first, second)]
        ours, theirs = ((split.images.fingerprint, split.rows.tolist()) for split in splits)
        same = ours == theirs
    if not same:
        raise UserError(f"{first.run} and {second.run} were scored on other test images; {advice}")
