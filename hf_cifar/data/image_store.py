"""The images of a split: a table of one size, or pictures of any size, decoded on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from hf_cifar.data.decode import BadImage, open_image, reason, to_rgb
from hf_cifar.data.decode_split import EncodedImages
from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.looks import table_looks
from hf_cifar.errors import UserError

if TYPE_CHECKING:
    import torch


class ImageStore(Protocol):
    """The images of a split by row, with their labels; `ImageTable` and `ImageFiles` are the two.

    labels: int64 [N]. label_names: one a class. fingerprint: sha256 hex over labels and images.
    bad: names of the pictures that were left out (`on_bad_image: skip`).
    size: (H, W) in px where all images share one and are decoded, else None.
    pixels: uint8 [N, 3, H, W] of such images, else None.
    """

    labels: np.ndarray
    label_names: list[str]
    fingerprint: str
    bad: list[str]

    @property
    def size(self) -> tuple[int, int] | None: ...
    @property
    def pixels(self) -> np.ndarray | None: ...
    def __len__(self) -> int: ...
    def batch(self, rows: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        """Return uint8 [B, 3, H, W], RGB, or a list of uint8 [3, H, W] where sizes differ.

        rows: int [B]. Raises UserError for a picture that can't be read any more.
        """
        ...

    def picture(self, row: int) -> np.ndarray:
        """Return one image as uint8 [H, W, 3], RGB, for plots."""
        ...

    def looks(self, rows: np.ndarray) -> np.ndarray:
        """Return `LOOK` [n] of `rows` (int [n]), to compare splits with."""
        ...


class ImageTable:
    """All images of a split, decoded, of one size.

    pixels: uint8 [N, 3, H, W], RGB, mapped read-only from the cache. labels: int64 [N].
    fingerprint: sha256 hex over, for each row in order, one label byte (two, big-endian, beyond 256
        classes) and the image bytes in channel-height-width order: the records of the binary
        version of CIFAR-10.
    bad: see `ImageStore`.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        label_names: list[str],
        fingerprint: str,
        bad: list[str],
    ) -> None:
        self.pixels, self.labels, self.label_names = pixels, labels, label_names
        self.fingerprint, self.bad = fingerprint, bad

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[2], self.pixels.shape[3]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """Return uint8 [B, 3, H, W], a copy of `rows` (int [B]) in their order, in one gather."""
        import torch

        return torch.from_numpy(np.take(self.pixels, rows, axis=0))

    def picture(self, row: int) -> np.ndarray:
        """Return one image as uint8 [H, W, 3], RGB."""
        return self.pixels[row].transpose(1, 2, 0)

    def looks(self, rows: np.ndarray) -> np.ndarray:
        """Return `LOOK` [n] of `rows` (int [n])."""
        return table_looks(self.pixels, rows)


class ImageFiles:
    """Pictures of mixed sizes, or too many for a table: checked once, decoded on demand.

    labels: int64 [N].
    fingerprint: sha256 hex over, for each row in order, the label bytes as in `ImageTable`, the
        number of encoded bytes (8 bytes, big-endian) and the encoded bytes; then over the
        `PixelRange` where it converts some. Neither file names nor times enter it.
    bad: see `ImageStore`. looks: `LOOK` [N].
    """

    size = None
    pixels = None
    # A batch must not take another way because its pictures happen to have one size.
    mixed_sizes = True

    def __init__(
        self,
        source: EncodedImages,
        rows: np.ndarray,
        labels: np.ndarray,
        label_names: list[str],
        fingerprint: str,
        bad: list[str],
        looks: np.ndarray,
        pixel_range: PixelRange | None = None,
    ) -> None:
        self._source, self._rows, self._looks = source, rows, looks
        self._pixel_range = pixel_range
        self.labels, self.label_names = labels, label_names
        self.fingerprint, self.bad = fingerprint, bad
        self.mixed_sizes = bool((looks["size"] != looks["size"][:1]).any())

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, row: int) -> str:
        """Return what to call the picture in a message."""
        return self._source.name(int(self._rows[row]))

    def read(self, row: int) -> torch.Tensor:
        """Return uint8 [3, H, W], RGB, as `to_rgb` gives it.

        Raises UserError if the picture went bad since it was checked.
        """
        import torch

        try:
            encoded = self._source.encoded(int(self._rows[row]))
            return torch.from_numpy(to_rgb(open_image(encoded), self._pixel_range))
        except (BadImage, OSError) as error:
            raise UserError(
                f"{self.name(row)} cannot be read any more ({reason(error)}); start again once it"
                " is back"
            ) from None

    def batch(self, rows: np.ndarray) -> torch.Tensor | list[torch.Tensor]:
        """Return uint8 [B, 3, H, W], or a list of uint8 [3, H, W] where sizes differ in a split."""
        import torch

        images = [self.read(int(row)) for row in rows]
        one_size = not self.mixed_sizes and len({image.shape for image in images}) == 1
        return torch.stack(images) if one_size else images

    def picture(self, row: int) -> np.ndarray:
        """Return one picture as uint8 [H, W, 3], RGB."""
        return self.read(row).numpy().transpose(1, 2, 0)

    def looks(self, rows: np.ndarray) -> np.ndarray:
        """Return `LOOK` [n] of `rows` (int [n])."""
        return self._looks[rows]


def check_labels(labels: np.ndarray, names: list[str], where: str) -> None:
    """Raise UserError that names the first row whose label is none of the classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        label = int(labels[wrong[0]])
        remedy = "correct the labels or the label names"
        if label == -1:
            remedy = (
                "-1 marks an unlabelled image, so take a split with labels (or ask `hf-cifar"
                " predict`)"
            )
        raise UserError(
            f"{where}: row {wrong[0]} has label {label}, outside 0..{len(names) - 1}; {remedy}"
        )


def label_bytes(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return how each record of a fingerprint starts: uint8 [N, 1], or [N, 2], big-endian, beyond
    256 classes.
    """
    if classes <= 256:
        return labels.astype(np.uint8)[:, None]
    return np.ascontiguousarray(labels.astype(">u2")).view(np.uint8).reshape(-1, 2)


def records(pixels: np.ndarray, labels: np.ndarray, classes: int) -> memoryview:
    """Return uint8 [n, 1 + 3*H*W], the records of the binary version of CIFAR-10, from uint8
    [n, 3, H, W] and int64 [n].
    """
    return np.concatenate(
        [label_bytes(labels, classes), pixels.reshape(len(pixels), -1)], axis=1
    ).data
