"""`hf-cifar predict`: classify pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from hf_cifar.evaluation.answers import Answer, Answerer
from hf_cifar.evaluation.classifier import Classifier, check_logits, load_classifier
from hf_cifar.evaluation.heat_map_layer import check_grad_cam, choose_layer
from hf_cifar.evaluation.heat_maps import HeatMaps, seen_picture
from hf_cifar.evaluation.named_picture import read_picture
from hf_cifar.evaluation.picture_list import expand
from hf_cifar.evaluation.task_answers import TaskAnswerer
from hf_cifar.training.precision import Precision

FLOAT32 = Precision(bf16=False, channels_last=False)


class Explanation(NamedTuple):
    """A picture as a model saw it, and a heat map of what the answer rests on.

    seen: uint8 [S, S, 3]. heat: float32 [S, S] in 0 to 1. label, score: of the class that it is
    for, which is the best one also where the answer is "none of these".
    """

    seen: np.ndarray
    heat: np.ndarray
    label: str
    score: float


def predict(
    model: str,
    images: list[str],
    top: int,
    explain: Callable[[str, Explanation], object] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield the name and the best answers, [{label, score}, ...], of each picture, as `Answerer`
    gives them; for a model of several tasks, such a list for each task by its name.

    Each picture is read once, when its turn comes.

    images: files, URLs, and folders, which stand for the pictures in and below them. explain: is
    given each picture's name and explanation, for which the package grad-cam is needed.
    Raises UserError, before the first answer for a file that is not there and for a model without
    heat maps, else in place of the answer to a picture that can't be read.
    """
    if explain is not None:
        check_grad_cam("predict --explain")
    classifier = load_classifier(model, several_tasks=explain is None, several_labels=True)
    names = [name for word in images for name, _ in expand(word)]
    make_answerer = TaskAnswerer if classifier.tasks else Answerer
    answerer = make_answerer(classifier, top, FLOAT32)
    explainer = _Explainer(classifier) if explain is not None else None
    for name in names:
        pixels = torch.from_numpy(read_picture(name, classifier.pixel_range))[None]
        with torch.inference_mode():
            inputs = classifier.transforms.evaluate(pixels.to(classifier.device))
        (answer,) = answerer.answer(inputs)
        check_logits(classifier, torch.tensor([answer is not None]), name)
        assert answer is not None
        if explain is not None and explainer is not None and isinstance(answer, Answer):
            # "none of these" comes before the classes, but is none that a map can be made for
            best = answer.labels[1 if answer.none_of_these else 0]
            explain(name, explainer.explain(pixels[0], inputs, **best))
        yield name, answer.labels


class _Explainer:
    """Makes heat maps with a classifier. Raises UserError where they can't be made."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        layer = choose_layer(classifier.model, classifier.transforms.image_size)
        self._heat_maps = HeatMaps(classifier.model, layer)

    def explain(
        self, pixels: torch.Tensor, inputs: torch.Tensor, label: str, score: float
    ) -> Explanation:
        """Return the explanation of an answer.

        pixels: uint8 [3, H, W]. inputs: float32 [1, 3, S, S], what the processor makes of them.
        """
        heat = self._heat_maps(inputs, self._classifier.labels.index(label))
        seen = seen_picture(self._classifier.transforms.processor, pixels)
        return Explanation(seen, heat, label, score)
