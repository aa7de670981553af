"""Pictures of any size as a model's inputs, as `pipeline` makes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from hf_cifar.data.decode import MAX_PIXELS, reason
from hf_cifar.evaluation.classifier import Classifier
from hf_cifar.evaluation.named_picture import UNREADABLE
from hf_cifar.evaluation.picture_list import Pictures


class ReadPicture(NamedTuple):
    """pixels: uint8 [3, H, W]. shrunk: whether the processor has shrunk them to [3, S, S]."""

    pixels: torch.Tensor
    shrunk: bool


class PictureReader:
    """Makes pictures into a model's inputs."""

    def __init__(self, classifier: Classifier, pictures: Pictures) -> None:
        self.classifier, self.pictures = classifier, pictures
        size = getattr(classifier.transforms.processor, "size", None) or {}
        self.keeps_shape = bool(size.get("shortest_edge"))

    def picture(self, row: int) -> ReadPicture | str:
        """Return a picture, or why it can't be read. Threads call this.

        A picture that is larger than the model's is shrunk at once, so that memory stays flat.
        Others are shrunk with those of their size: for 32 px, the processor's call for each of them
        took a fifth of the time of ResNet-18 at 96 px. Both give what `pipeline` does.
        """
        transforms = self.classifier.transforms
        try:
            pixels = torch.from_numpy(self.pictures.pixels(row))
            height, width = pixels.shape[1:]
            ratio = max(height, width) / min(height, width)
            if self.keeps_shape and ratio * transforms.image_size**2 > MAX_PIXELS:
                return f"it is {width} x {height} px, too narrow to resize safely"
            if height * width <= transforms.image_size**2:
                return ReadPicture(pixels, shrunk=False)
            return ReadPicture(transforms.shrink(pixels), shrunk=True)
        except (*UNREADABLE, RuntimeError, TypeError) as error:  # the last two are the processor's
            return reason(error)

    def inputs(self, pictures: list[ReadPicture]) -> torch.Tensor:
        """Return the model's float32 [B, 3, S, S] for pictures, on its device."""
        transforms, device = self.classifier.transforms, self.classifier.device
        groups: dict[tuple[Any, bool], list[int]] = {}
        for place, (pixels, shrunk) in enumerate(pictures):
            groups.setdefault((pixels.shape, shrunk), []).append(place)
        inputs = []
        for (_, shrunk), places in groups.items():
            uint8 = torch.stack([pictures[place].pixels for place in places]).to(device)
            inputs.append(transforms.normalize(uint8) if shrunk else transforms.evaluate(uint8))
        order = torch.tensor([place for places in groups.values() for place in places])
        return torch.cat(inputs)[order.argsort()]
