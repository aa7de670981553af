"""Numbers, names and code as the model card writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from hf_cifar.text import visible, visible_lines


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def count(value: float) -> str:
    return f"{value:,.0f}"


def rate(value: float) -> str:
    """Write a speed as people read it: 21,260 or 133.6 or 0.42."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(byte_count: float) -> str:
    return f"{byte_count / 2**30:.2f} GiB"


def flops(operations: float) -> str:
    if operations >= 1e7:
        return f"{operations / 1e9:,.2f} GFLOPs"
    return f"{operations / 1e6:,.2f} MFLOPs"


def markdown(text: Any) -> str:
    """Write a name as plain text, in a sentence or a table cell."""
    # An underscore inside a word is no markup.
    special = r"([\\`*\[\]<>|#]|(?<!\w)_|_(?!\w))"
    return re.sub(special, r"\\\1", visible(" ".join(str(text).split())))


def literal(text: str) -> str:
    """Write a Python string literal."""
    return visible(json.dumps(text, ensure_ascii=False))  # a JSON string is a Python one, too


def fenced(code: str, language: str) -> str:
    """Write a block of code, with a fence that the code itself can't close."""
    code = visible_lines(code.rstrip("\n"))
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "points": lambda value: f"{100 * value:.2f}",
    "count": count,
    "rate": rate,
    "duration": duration,
    "size": size,
    "flops": flops,
    "markdown": markdown,
    "figure": lambda value: f"{value:.4g}",
    "literal": literal,
    "fenced": fenced,
}


def keeps_undefined(format: Callable[..., str]) -> Callable[..., Any]:
    """Return the template filter of `format` that leaves an undefined value undefined, so that its
    row is left out.
    """
    import jinja2

    return lambda value, *args: (
        value if isinstance(value, jinja2.Undefined) else format(value, *args)
    )
