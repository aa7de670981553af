"""Text from files and command lines of others, made safe to show."""

from __future__ import annotations

import re

# Control characters except the tab, marks that turn the reading direction, separators of lines and
# paragraphs, and the halves of characters that stand for bytes that are no UTF-8.
UNSAFE = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f"
    "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff]"
)


def visible(text: object, most: int | None = None) -> str:
    r"""Return `text` on one line, with unsafe characters written as escapes, such as `\x1b`.

    No escape sequence then reaches a terminal, and no mark turns the text that follows. Emoji and
    all scripts stay as they are.

    most: number of characters of `text` that are shown; an ellipsis stands for the rest.
    """
    string = str(text)
    if most is not None and len(string) > most:
        string = string[:most] + "…"
    return UNSAFE.sub(lambda match: ascii(match[0])[1:-1], string)


def visible_lines(text: str) -> str:
    """Return `text` with its line breaks, and every line made `visible`."""
    return "\n".join(map(visible, text.split("\n")))
