"""`hf-cifar predict`: classify pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hf_cifar.evaluation.answers import Answerer
from hf_cifar.evaluation.classifier import check_logits, load_classifier
from hf_cifar.evaluation.named_picture import read_picture
from hf_cifar.evaluation.picture_list import expand
from hf_cifar.training.precision import Precision


def predict(model: str, images: list[str], top: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the name and the best answers, [{label, score}, ...], of each picture, as `Answerer`
    gives them.

    Each picture is read once, when its turn comes.

    images: files, URLs, and folders, which stand for the pictures in and below them.
    Raises UserError, before the first answer for a file that is not there, else in place of the
    answer to a picture that can't be read.
    """
    classifier = load_classifier(model, several_labels=True)
    names = [name for word in images for name, _ in expand(word)]
    answerer = Answerer(classifier, top, Precision(bf16=False, channels_last=False))
    for name in names:
        pixels = torch.from_numpy(read_picture(name, classifier.pixel_range))[None]
        with torch.inference_mode():
            inputs = classifier.transforms.evaluate(pixels.to(classifier.device))
        (answer,) = answerer.answer(inputs)
        check_logits(classifier, torch.tensor([answer is not None]), name)
        assert answer is not None
        yield name, answer.labels
