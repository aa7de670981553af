"""One encoded picture to uint8 RGB, exactly as `pipeline` reads it."""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps

from hf_cifar.data.deep_pixels import (
    MISFIT_REMEDY,
    REMEDY,
    PixelRange,
    deep_values,
    is_deep,
)

# The readers of PIL that are used. Others, such as that of EPS, start programs. TGA comes last: it
# has no signature, so its reader takes many files for its own.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
PICTURE_SUFFIXES: tuple[str, ...] = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
MAX_SIDE = 65_535  # px: the most that a JPEG can have; a wider picture is a mistake or an attack
MAX_PIXELS = 89_478_485  # PIL's own mark for a decompression bomb (a quarter of a GiB in RGB)
MAX_PICTURE_BYTES = 384 * 2**20  # of a file: MAX_PIXELS of 4 bytes, not compressed
# PIL warns of each odd palette or EXIF block, and the user can't do anything about it.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(Exception):
    """A picture that can't be decoded; the message is the reason, without the picture's name."""


class DeepImage(BadImage):
    """A picture with more than 8 bits a channel that no `PixelRange` converts.

    remedy: what to set in a recipe.
    """

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


@functools.cache
def _formats() -> list[str]:
    """Return those of `FORMATS` that this build of PIL knows."""
    PIL.Image.init()
    return [name for name in FORMATS if name in PIL.Image.OPEN]


def open_image(data: bytes) -> PIL.Image.Image:
    """Return the picture with its header read and no pixel decoded.

    Raises BadImage if the data is no picture of `FORMATS`, or a picture that is too large.
    """
    if not data:
        raise BadImage("it is empty")
    if len(data) > MAX_PICTURE_BYTES:
        raise BadImage(f"it has {len(data) / 1e6:,.0f} MB, too much to decode safely")
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=_formats())
    except PIL.UnidentifiedImageError:
        raise BadImage("its content is no image") from None
    except Exception as error:  # PIL's readers raise nearly anything on broken headers
        raise BadImage(reason(error)) from None
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise BadImage(f"it is {image.width} x {image.height} px, too large to decode safely")
    return image


def to_rgb(image: PIL.Image.Image, pixel_range: PixelRange | None = None) -> np.ndarray:
    """Return uint8 [3, H, W], decoded as transformers' `load_image` does: turned as EXIF says, then
    PIL's `convert("RGB")`.

    pixel_range: converts pictures with more than 8 bits a channel.
    Raises BadImage with the reason, and DeepImage for such a picture without a range.
    """
    if is_deep(image.mode) and pixel_range is None:
        raise DeepImage(
            f"it has more than 8 bits a channel (PIL's mode {image.mode}), and `pipeline` would cut"
            " its values off at 255",
            REMEDY,
        )
    try:
        upright = PIL.ImageOps.exif_transpose(image)
        if pixel_range is None or not is_deep(upright.mode):
            return np.ascontiguousarray(np.asarray(upright.convert("RGB")).transpose(2, 0, 1))
        values = deep_values(upright)
        if why := pixel_range.misfit(values):
            raise DeepImage(why, MISFIT_REMEDY)
        return np.stack([pixel_range.to_8_bits(values)] * 3)
    except BadImage:
        raise
    except Exception as error:  # PIL's decoders raise nearly anything on broken data
        raise BadImage(reason(error)) from None


def reason(error: BaseException) -> str:
    """Return an exception in one line of at most 200 characters, without the path of a file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error)[:1000].strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
