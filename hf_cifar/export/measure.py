"""How close exported graphs come to the model that they were made of, and how fast they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.splits import Split
from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.evaluation.metrics import wilson
from hf_cifar.evaluation.paired_test import paired_test
from hf_cifar.export.session import logits_of, open_session

TORCH = "torch"
EVALUATED_AT_ONCE = 32  # images
BATCHES = (1, 32)  # whose speed is measured
TURNS = 5  # how often each side is timed, in turn
SHORTEST_TURN = 0.2  # seconds
MOST_PASSES = 20  # in a turn


def pixel_batches(classifier: Classifier, split: Split, size: int) -> Iterator[np.ndarray]:
    """Yield the images of a split as the model takes them, float32 [B, 3, S, S], B up to `size`."""
    batches = ImageBatches(split, classifier.transforms, training=False)
    for start in range(0, len(batches), size):
        tickets = list(range(start, min(start + size, len(batches))))
        inputs = batches.model_inputs(batches.__getitems__(tickets), torch.device("cpu"))
        yield inputs["pixel_values"].numpy()


def torch_logits(model: Any, pixels: np.ndarray) -> np.ndarray:
    """Return float32 [B, C], the model's own answers to float32 [B, 3, S, S]."""
    with torch.inference_mode():
        return model(pixel_values=torch.from_numpy(pixels)).logits.numpy()


def all_logits(
    classifier: Classifier, split: Split, graphs: Mapping[str, Path], with_torch: bool = True
) -> dict[str, np.ndarray]:
    """Return float32 [n, C] for the images of a split: of the model, under `torch`, and of each
    graph. The model lies on the CPU.
    """
    sides = _sides(classifier.model, graphs)
    if not with_torch:
        del sides[TORCH]
    logits: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    for pixels in pixel_batches(classifier, split, EVALUATED_AT_ONCE):
        for name, answer in sides.items():
            logits[name].append(answer(pixels))
    return {name: np.concatenate(parts) for name, parts in logits.items()}


def closeness(logits: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return for the model and each graph `accuracy` with its 95 % interval `low` to `high`; and
    for each graph `agreement`, the share of images with the model's answer, the largest difference
    of a logit, and `paired`, the test of the model against the graph.

    labels: int64 [n], among the model's classes: the answer is the class of the largest logit. Or
    bool [n, C], which labels each image has: the answer is all labels with a probability of 0.5 or
    more, and it is right where none of them is wrong or missing.
    """
    several = labels.ndim > 1
    answers = {name: _answers(one, several) for name, one in logits.items()}
    correct = {name: _same(one, labels) for name, one in answers.items()}
    facts: dict[str, dict[str, Any]] = {}
    for name, numbers in logits.items():
        right = int(correct[name].sum())
        low, high = wilson(right, len(labels))
        facts[name] = {"accuracy": right / len(labels), "low": low, "high": high}
        if name != TORCH:
            facts[name] |= {
                "agreement": float(_same(answers[name], answers[TORCH]).mean()),
                "max_logit_difference": float(np.abs(numbers - logits[TORCH]).max()),
                "paired": asdict(paired_test(correct[TORCH], correct[name])),
            }
    return facts


def _answers(logits: np.ndarray, several: bool) -> np.ndarray:
    """Return the class of each image, int64 [n]; or its labels, bool [n, C]."""
    return logits >= 0 if several else logits.argmax(1)  # a logit of 0 is a probability of 0.5


def _same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return where two answers are the same, bool [n]."""
    same = first == second
    return same.all(1) if same.ndim > 1 else same


def speeds(
    model: Any, graphs: Mapping[str, Path], side: int, *, batches: Sequence[int] = BATCHES
) -> dict[str, dict[str, float]]:
    """Return images/s of the model and of each graph on one thread, by batch ("1", "32").

    All are timed in turn, and the median of the turns counts. The seconds are those that the
    processor computes for this process: on a machine that others use too, seconds of the clock
    would favour what is done before the first interruption. side: of the images, in pixels.
    batches: sizes to measure.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sides = _sides(model, graphs, threads=1)
        result: dict[str, dict[str, float]] = {name: {} for name in sides}
        for batch in batches:
            pixels = np.zeros((batch, 3, side, side), np.float32)
            passes = {name: _passes(answer, pixels) for name, answer in sides.items()}
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(TURNS):
                for name, answer in sides.items():
                    began = time.process_time()
                    for _ in range(passes[name]):
                        answer(pixels)
                    seconds[name].append((time.process_time() - began) / passes[name])
            for name, times in seconds.items():
                result[name][str(batch)] = batch / statistics.median(times)
        return result
    finally:
        torch.set_num_threads(threads)


def _passes(answer: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> int:
    """Return how many passes a turn needs, after one to warm up."""
    answer(pixels)
    began = time.process_time()
    answer(pixels)
    seconds = max(time.process_time() - began, SHORTEST_TURN / MOST_PASSES)
    return max(1, round(SHORTEST_TURN / seconds))


def _sides(
    model: Any, graphs: Mapping[str, Path], threads: int = 0
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return what answers with logits to pixels, by name: the model and each graph."""
    sides: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        TORCH: lambda pixels: torch_logits(model, pixels)
    }
    for name, path in graphs.items():
        session = open_session(path, threads)
        sides[name] = lambda pixels, session=session: logits_of(session, pixels)  # type: ignore[misc]
    return sides
