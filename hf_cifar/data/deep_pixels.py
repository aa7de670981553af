"""Pictures with more than 8 bits a channel: X-rays, thermal cameras, microscopes.

PIL's `convert("RGB")`, and with it `pipeline`, cuts their values off at 255. They are therefore
refused, unless the recipe's `deep_pixels` says which range of values becomes 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from hf_cifar.errors import UserError

INTEGER_RANGE = (0.0, 65_535.0)  # also of PIL's mode I where it comes from a 16-bit file
FLOAT_RANGE = (0.0, 1.0)
SAMPLED_VALUES = 10_000_000  # of all pictures together, to find percentiles
REMEDY = "convert the pictures to 8 bits, or set deep_pixels: rescale"
MISFIT_REMEDY = "set deep_pixels to two percentiles of train, such as [0.5, 99.5]"


def is_deep(mode: str) -> bool:
    """Return whether PIL's `mode` holds more than 8 bits a channel: I, F, I;16 and its variants."""
    return mode in ("I", "F") or mode.startswith("I;16")


@dataclass(frozen=True)
class Percentiles:
    """Two percentiles, 0 to 100, of the values of the train split's deep pictures."""

    low: float
    high: float


@dataclass(frozen=True)
class PixelRange:
    """How deep pixels become 8 bits: linearly, from [low, high] to [0, 255].

    bounds: (low, high), or None for the range of the type: 0 to 65,535 of integers, 0 to 1 of
    floats.
    """

    bounds: tuple[float, float] | None = None

    @classmethod
    def from_config(cls, value: Any) -> PixelRange | None:
        """Return what `to_config` gave; None stands for no range. Raises UserError."""
        if value is None or value == "type":
            return None if value is None else cls()
        if isinstance(value, list) and len(value) == 2:
            bounds = [float(v) for v in value if type(v) in (int, float)]
            if len(bounds) == 2 and np.isfinite(bounds).all() and bounds[0] < bounds[1]:
                return cls((bounds[0], bounds[1]))
        raise UserError(f'deep_pixels must be "type" or [low, high], got {str(value)[:80]}')

    def to_config(self) -> str | list[float]:
        """Return the range as JSON can hold it, for a model's config."""
        return "type" if self.bounds is None else list(self.bounds)

    def instructions(self) -> str:
        """Return one sentence that says how pictures must be converted before `pipeline`."""
        low, high = self.bounds or INTEGER_RANGE
        others = "" if self.bounds else " (LOW, HIGH = 0, 1 for pictures of floats)"
        return (
            "Pictures with more than 8 bits a channel must be converted to 8 bits before"
            " `pipeline` reads them, as `hf-cifar predict` does:"
            " `PIL.Image.fromarray(np.clip((np.asarray(picture, np.float32) - LOW)"
            " * np.float32(255 / (HIGH - LOW)), 0, 255).round().astype(np.uint8))` with"
            f" `LOW, HIGH = {low:.9g}, {high:.9g}`{others}."
        )

    def _bounds_of(self, values: np.ndarray) -> tuple[float, float]:
        return self.bounds or (FLOAT_RANGE if values.dtype.kind == "f" else INTEGER_RANGE)

    def misfit(self, values: np.ndarray) -> str | None:
        """Return how values go beyond their type's range, or None if they don't."""
        low, high = self._bounds_of(values)
        if self.bounds is not None or (values.min() >= low and values.max() <= high):
            return None
        return (
            f"its values lie between {values.min():g} and {values.max():g}, not in {low:g} to"
            f" {high:g}"
        )

    def to_8_bits(self, values: np.ndarray) -> np.ndarray:
        """Return uint8 [H, W] from integers or floats [H, W]; values out of range are clipped."""
        low, high = self._bounds_of(values)
        scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return np.clip(scaled, 0, 255).round().astype(np.uint8)


def deep_setting(value: str | Sequence[float]) -> PixelRange | Percentiles | None:
    """Return what the recipe's `deep_pixels` means; None: deep pictures are an error.

    Raises UserError for percentiles that are none.
    """
    if isinstance(value, str):
        return None if value == "error" else PixelRange()
    if len(value) != 2 or not 0 <= value[0] < value[1] <= 100:
        raise UserError(
            f"deep_pixels is {list(value)[:10]}; choose error, rescale or two percentiles such as"
            " [0.5, 99.5]"
        )
    return Percentiles(value[0], value[1])


def deep_values(image: PIL.Image.Image) -> np.ndarray:
    """Return the values of a deep picture [H, W], integers or floats in the host's byte order.

    Raises ValueError for floats that are not finite.
    """
    values = np.asarray(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("some of its values are not finite numbers")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def sample_values(values: np.ndarray, count: int) -> np.ndarray:
    """Return about `count` values of a picture, float64, at even distances."""
    return values.ravel()[:: max(1, values.size // max(count, 1))].astype(np.float64)
