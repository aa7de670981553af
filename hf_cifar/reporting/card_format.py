"""Numbers and names as the model card writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _flops(count: float) -> str:
    return f"{count / 1e9:,.2f} GFLOPs" if count >= 1e7 else f"{count / 1e6:,.2f} MFLOPs"


def _markdown(text: Any) -> str:
    """A name as plain text, in a sentence or a table cell."""
    # An underscore inside a word is no markup.
    return re.sub(r"([\\`*\[\]<>|#]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(text).split()))


FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": _percent,
    "points": lambda value: f"{100 * value:.2f}",
    "count": _count,
    "duration": _duration,
    "size": _size,
    "flops": _flops,
    "markdown": _markdown,
    "figure": lambda value: f"{value:.4g}",
    "literal": lambda text: json.dumps(
        text, ensure_ascii=False
    ),  # a JSON string is a Python one too
}


def keeps_absent(form: Callable[[Any], str]) -> Callable[[Any], Any]:
    """The filter for a value that may be undefined: what is absent stays absent and its row is left
    out.
    """
    import jinja2

    return lambda value: value if isinstance(value, jinja2.Undefined) else form(value)
