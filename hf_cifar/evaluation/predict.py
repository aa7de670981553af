"""`hf-cifar predict`: classify pictures."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_cifar.data.decode import (
    MAX_PICTURE_BYTES,
    PICTURE_SUFFIXES,
    BadImage,
    DeepImage,
    open_image,
    to_rgb,
)
from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.regular_files import read_regular_file
from hf_cifar.data.sources.folders import pictures_below
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import check_logits, load_classifier
from hf_cifar.evaluation.known_pictures import read_known
from hf_cifar.evaluation.reject import NONE_OF_THESE, Rejecter
from hf_cifar.models.structure import head

WEB = ("http://", "https://")


def predict(model: str, images: list[str], top: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the name and the best answers, [{label, score}, ...], of each picture, as `pipeline`
    gives them. Where `hf-cifar calibrate` has chosen a threshold for the model, the answer "none of
    these" comes first for a picture below it; its score is the share of validation pictures that
    look more like the classes.

    Every file is read before the first is classified.

    images: files, URLs, and folders, which stand for the pictures in and below them.
    Raises UserError that names the picture that can't be read.
    """
    names = [name for word in images for name in _expand(word)]
    classifier = load_classifier(model)
    for name in names:
        if not name.startswith(WEB):
            read_picture(name, classifier.pixel_range)
    known = read_known(classifier)
    rejecter = Rejecter(known) if known is not None and known.reject is not None else None
    features: list[torch.Tensor] = []
    if rejecter is not None:
        _, linear = head(classifier.model)
        linear.register_forward_pre_hook(lambda _, args: features.append(args[0].float().cpu()))
    for name in names:
        pixels = torch.from_numpy(read_picture(name, classifier.pixel_range))[None]
        with torch.inference_mode():
            inputs = classifier.transforms.evaluate(pixels.to(classifier.device))
            logits = classifier.model(pixel_values=inputs).logits[0].cpu()
        check_logits(classifier, logits.isfinite().all()[None], name)
        best = logits.softmax(-1).topk(min(top, len(logits)))
        answers: list[dict[str, Any]] = [
            {"label": classifier.labels[number], "score": score}
            for score, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        if rejecter is not None and rejecter.is_stranger(picture := features.pop())[0]:
            strangeness = float(rejecter.strangeness(picture)[0])
            answers.insert(0, {"label": NONE_OF_THESE, "score": strangeness})
        yield name, answers


def _expand(word: str) -> list[str]:
    """Return the pictures in and below a folder, or the word itself. Raises UserError."""
    folder = Path(word)
    if word.startswith(WEB) or not folder.is_dir():
        return [word]
    pictures = sorted(str(folder / name) for name, _ in pictures_below(folder, ""))
    if not pictures:
        raise UserError(f"{word}: no picture in this folder ({', '.join(PICTURE_SUFFIXES)})")
    return pictures


def read_picture(name: str, pixel_range: PixelRange | None = None) -> np.ndarray:
    """Return uint8 [3, H, W] of a file or URL, decoded as `pipeline` does. Raises UserError.

    pixel_range: converts pictures with more than 8 bits a channel, which are refused without it.
    """
    try:
        if name.startswith(WEB):
            with urllib.request.urlopen(name, timeout=20) as answer:
                data = answer.read(MAX_PICTURE_BYTES + 1)
        else:
            data = read_regular_file(Path(name), MAX_PICTURE_BYTES)
        return to_rgb(open_image(data), pixel_range)
    except DeepImage as error:
        raise UserError(
            f"{name}: {error}; convert it to 8 bits, or train with deep_pixels: rescale"
        ) from None
    except BadImage as error:
        raise UserError(f"{name}: {error}; name a picture") from None
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's own are OSErrors
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{name}: {reason}; name a picture, a folder of pictures or a URL"
        ) from None
