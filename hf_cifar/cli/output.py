"""What the command writes: text that any terminal, pipe or file takes, whatever names are in it."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys

from hf_cifar.errors import HfCifarError, UserError
from hf_cifar.text import visible_lines


class OutputClosed(HfCifarError):
    """The reader of standard output, such as `head -1`, has ended. There is nothing to report."""

    exit_code = 128 + signal.SIGPIPE


class OneLineFormatter(logging.Formatter):
    """Writes log messages without characters that a terminal would act on."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


def prepare_output() -> None:
    """Let standard output and error take every character: one that their encoding lacks becomes an
    escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, end: str = "\n") -> None:
    """Write `text` to standard output, at once and without characters that a terminal would act on.

    Raises OutputClosed where nobody reads it any more, UserError where it can't be written.
    """
    try:
        print(visible_lines(text), end=end, flush=True)
    except BrokenPipeError:
        _discard_output()
        raise OutputClosed from None
    except OSError as error:
        _discard_output()
        raise UserError(
            f"standard output: {error.strerror}; free some space or write to another place"
        ) from None


def _discard_output() -> None:
    """Send standard output nowhere, so that Python's own flush at exit doesn't fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
