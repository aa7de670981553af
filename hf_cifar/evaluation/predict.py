"""`hf-cifar predict`: classify pictures."""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_cifar.data.decode import BadImage, open_image, to_rgb
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


def predict(model: str, images: list[str], top: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(name, [{label, score}, ...]) of each image, best first, as `pipeline` answers. Folders stand
    for the pictures in them.

    Every image is read before the first is classified. Raises UserError that names the image that
    can't be.
    """
    names = [name for word in images for name in _expand(word)]
    for name in names:
        if "://" not in name:
            read_picture(name)  # all are looked at before the first answer, one at a time
    classifier = load_classifier(model)
    with torch.inference_mode():
        for name in names:
            pixels = classifier.transforms.evaluate(
                torch.from_numpy(read_picture(name))[None].to(classifier.device)
            )
            scores = classifier.model(pixel_values=pixels).logits[0].softmax(-1).cpu()
            best = scores.topk(min(top, len(scores)))
            yield (
                name,
                [
                    {"label": classifier.labels[i], "score": s}
                    for s, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ],
            )


def _expand(word: str) -> list[str]:
    path = Path(word)
    if not path.is_dir():
        return [word]
    found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in PICTURES)
    if not found:
        raise UserError(f"{word}: no picture in this folder ({', '.join(PICTURES)})")
    return found


def read_picture(name: str) -> np.ndarray:
    """uint8 [3, H, W] of a file or URL, decoded as `pipeline` does. Raises UserError."""
    try:
        if name.startswith(("http://", "https://")):
            with urllib.request.urlopen(name, timeout=20) as answer:
                data = answer.read()
        else:
            data = Path(name).read_bytes()
        return to_rgb(open_image(data))
    except BadImage as error:
        raise UserError(f"{name}: {error}; name a picture") from None
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's own are OSErrors
        raise UserError(
            f"{name}: {getattr(error, 'strerror', None) or error}; name a picture, a folder of pictures or a URL"
        ) from None
