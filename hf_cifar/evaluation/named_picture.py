"""One picture by its name, a file or a URL, read within bounds of size and time."""

from __future__ import annotations

import http.client
import queue
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from hf_cifar.data.decode import MAX_PICTURE_BYTES, BadImage, DeepImage, open_image, to_rgb
from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.regular_files import read_regular_file
from hf_cifar.errors import UserError

WEB = ("http://", "https://")
SILENCE = 20.0  # seconds without an answer after which a download is given up
LONGEST_DOWNLOAD = 120.0  # seconds for all of it
PIECE = 2**16  # bytes that are read at once
# What reading and decoding a picture raises; urllib's own errors are OSErrors.
UNREADABLE = (BadImage, OSError, ValueError, http.client.HTTPException)


def read_picture(name: str, pixel_range: PixelRange | None = None) -> np.ndarray:
    """Return uint8 [3, H, W] of a file or URL, decoded as `pipeline` does. Raises UserError.

    pixel_range: converts pictures with more than 8 bits a channel, which are refused without it.
    """
    try:
        return to_rgb(open_image(read_encoded(name)), pixel_range)
    except DeepImage as error:
        raise UserError(
            f"{name}: {error}; convert it to 8 bits, or train with deep_pixels: rescale"
        ) from None
    except BadImage as error:
        raise UserError(f"{name}: {error}; name a picture") from None
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{name}: {reason}; name a picture, a folder of pictures or a URL"
        ) from None


def read_encoded(name: str) -> bytes:
    """Return the content of a picture's file or URL, at most `MAX_PICTURE_BYTES` and one more.

    Raises one of UNREADABLE, at the latest after `LONGEST_DOWNLOAD`.
    """
    if not name.startswith(WEB):
        return read_regular_file(Path(name), MAX_PICTURE_BYTES)
    outcome: queue.Queue[bytes | Exception] = queue.Queue()

    def download() -> None:
        try:
            outcome.put(_download(name))
        except Exception as error:
            outcome.put(error)

    # In a thread of its own, which is left behind if need be: neither the look-up of a server's
    # name nor headers that trickle in can be interrupted.
    threading.Thread(target=download, daemon=True).start()
    try:
        result = outcome.get(timeout=LONGEST_DOWNLOAD)
    except queue.Empty:
        raise TimeoutError(_too_slow()) from None
    if isinstance(result, Exception):
        raise result
    return result


def _download(url: str) -> bytes:
    deadline, content = time.monotonic() + LONGEST_DOWNLOAD, bytearray()
    with urllib.request.urlopen(url, timeout=SILENCE) as answer:
        while len(content) <= MAX_PICTURE_BYTES and (piece := answer.read1(PIECE)):
            content += piece
            if time.monotonic() > deadline:
                raise TimeoutError(_too_slow())
        if len(content) <= MAX_PICTURE_BYTES and answer.length:
            raise OSError(f"the server broke off with {answer.length:,} bytes to come")
    return bytes(content)


def _too_slow() -> str:
    return f"its download took over {LONGEST_DOWNLOAD:.0f} s"
