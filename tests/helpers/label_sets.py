"""Pictures of which each shows any of three colours: several labels a picture, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

COLOURS = ["blue", "green", "red"]
CHANNELS = {"red": 0, "green": 1, "blue": 2}


def colour_picture(labels: list[str], random: np.random.Generator) -> PIL.Image.Image:
    """Return a noisy picture of 32 px whose channels shine where their colours are labels."""
    pixels = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
    for label in labels:
        pixels[..., CHANNELS[label]] += 150
    return PIL.Image.fromarray(pixels)


def colour_sets(count: int, seed: int = 0) -> list[list[str]]:
    """Return for each of `count` pictures its labels: each colour with probability one half."""
    drawn = np.random.default_rng(seed).random((count, 3)) < 0.5
    return [[name for name, there in zip(COLOURS, row, strict=True) if there] for row in drawn]


def write_colour_folder(folder: Path, count: int) -> list[list[str]]:
    """Write pictures and a labels.csv with labels such as `blue|red`, and `|` for none; return the
    labels of each picture.
    """
    folder.mkdir()
    random, sets = np.random.default_rng(1), colour_sets(count)
    lines = ["file_name,label"]
    for number, labels in enumerate(sets):
        colour_picture(labels, random).save(folder / f"{number:03d}.png")
        lines.append(f"{number:03d}.png,{'|'.join(labels) or '|'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return sets
