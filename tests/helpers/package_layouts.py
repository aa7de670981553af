"""Made-up packages in the layouts of real ones, and folders of commands."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import sys
from pathlib import Path

import numpy as np
import PIL.Image


def write_idx(path: Path, array: np.ndarray) -> bytes:
    """Write a uint8 array as an IDX file packed by gzip; return the unpacked content."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0))
    return content


def write_elpv_package(site: Path, counts: dict[tuple[float, str], int]) -> tuple[Path, str]:
    """Write the package `elpv_dataset` with `counts` cells of each (probability, type).

    Returns its data folder, and the sha256 of labels.csv and the pictures.
    """
    data = site / "elpv_dataset" / "data"
    (data / "images").mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    random, lines, pictures = np.random.default_rng(0), [], []
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    for number, (probability, crystal) in enumerate(kinds):
        name, file = f"images/cell{number:04d}.png", io.BytesIO()
        PIL.Image.fromarray(random.integers(0, 256, (30, 30), np.uint8)).save(file, "PNG")
        pictures.append(file.getvalue())
        (data / name).write_bytes(file.getvalue())
        lines.append(f"{name}  {probability!r:<20} {crystal}\n")
    table = "".join(lines).encode()
    (data / "labels.csv").write_bytes(table)
    return data, hashlib.sha256(b"".join([table, *pictures])).hexdigest()


def commands_only(folder: Path, scripts: dict[str, str]) -> str:
    """Return a PATH that holds nothing but commands, Python scripts by name."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!{sys.executable}\n{script}")
        (folder / name).chmod(0o755)
    return str(folder)
