"""What all plots of a run look like, and the fonts that their class names need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager, ft2font
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_cifar.text import visible

# Okabe and Ito's colours, which colour-blind readers can tell apart as well.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#8C8C8C"
VERMILION, PURPLE = "#D55E00", "#CC79A7"
BASE_FONT = "DejaVu Sans"  # comes with matplotlib, so every machine draws the same letters
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.edgecolor": "none",
    "figure.dpi": 130,
}
# Keyword of texts that hold class names, where "$" is a dollar and begins no formula.
PLAIN: dict[str, Any] = {"parse_math": False}
# Letters of these scripts join or change their places, which matplotlib does from 3.11 on.
SHAPES_TEXT = hasattr(ft2font, "__libraqm_version__")
FIRST_COMPLEX, LAST_COMPLEX = 0x0590, 0x109F  # Hebrew and Arabic to Burmese


@contextlib.contextmanager
def drawing(class_names: Sequence[str] = ()) -> Iterator[None]:
    """Give the figures that are made and saved in this block the project's style, and fonts that
    have the letters of the class names.
    """
    families = [BASE_FONT, *_more_fonts(tuple(class_names))]
    with matplotlib.rc_context(STYLE | {"font.family": families}):
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG without the name of the software in it, so that equal figures are equal bytes."""
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Software": None})


def plot_labels(class_names: Sequence[str], most: int = 18) -> list[str]:
    """Return the class names as plots show them: of at most `most` characters, or `class 7` for the
    name of class 7 if no font on this machine can draw it.
    """
    fonts = [BASE_FONT, *_more_fonts(tuple(class_names))]
    covered = frozenset[str]().union(*map(_characters, fonts))
    labels = []
    for number, name in enumerate(class_names):
        text = visible(name)
        text = text if len(text) <= most else f"{text[: most - 1]}…"
        labels.append(text if _can_draw(text, covered) else f"class {number}")
    return labels


def needs_more_than_base_font(class_names: Sequence[str]) -> bool:
    """Return whether plots show some of these names as numbers on a machine without other fonts."""
    base = _characters(BASE_FONT)
    return any(not _can_draw(visible(name), base) for name in class_names)


def _can_draw(text: str, covered: frozenset[str]) -> bool:
    is_complex = any(FIRST_COMPLEX <= ord(character) <= LAST_COMPLEX for character in text)
    return covered.issuperset(text) and (SHAPES_TEXT or not is_complex)


@lru_cache(maxsize=8)
def _more_fonts(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return installed fonts that together have the letters that the base font lacks, as far as
    there are any.
    """
    missing = set(visible("".join(class_names))) - _characters(BASE_FONT)
    chosen = []
    for family in _installed_fonts() if missing else ():
        if missing & _characters(family):
            missing -= _characters(family)
            chosen.append(family)
    return tuple(chosen)


@cache
def _installed_fonts() -> dict[str, str]:
    """Return the file of each family that can be drawn upright in normal weight, by its name."""
    fonts = {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        if (entry.style, entry.stretch, entry.size) == ("normal", "normal", "scalable")
        and entry.weight in (400, "normal", "regular")
        and "Last Resort" not in entry.name  # has a box for every character
    }
    return dict(sorted(fonts.items()))


@cache
def _characters(family: str) -> frozenset[str]:
    """Return the characters that a font has outlines for; none if it can't be read."""
    try:
        font = ft2font.FT2Font(_installed_fonts()[family])
    except (KeyError, RuntimeError, OSError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
