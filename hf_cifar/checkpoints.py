"""Checkpoints that appear whole or not at all, and that say so.

A checkpoint is written aside, every file synced and listed with its SHA-256 in `checksums.json`, and then renamed into
place. One that lacks the list, or whose files differ from it, was cut short or altered and is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

CHECKSUMS = "checksums.json"
WRITING = ".writing"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(aside: Path, final: Path) -> None:
    """Put checksums into the folder `aside`, sync it to disk and rename it to `final` (replacing a broken one)."""
    files = sorted(p for p in aside.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    sums = {str(p.relative_to(aside)): sha256(p) for p in files}
    (aside / CHECKSUMS).write_text(json.dumps(sums, indent=1))
    for path in (*files, aside / CHECKSUMS, aside):
        _sync(path)
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    _sync(final.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
    except FileNotFoundError:
        return f"has no {CHECKSUMS}: it was never finished"
    except ValueError:
        return f"{CHECKSUMS} is not readable"
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != expected:
            return f"{name} is not what was written ({path.stat().st_size:,} bytes)"
    return None


def steps(root: Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint below `root`, oldest first."""
    found = {int(p.name.removeprefix("checkpoint-")): p for p in root.glob("checkpoint-*") if p.name[11:].isdigit()}
    return dict(sorted(found.items()))


def last_good(root: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint, and a line for each damaged one that was passed over."""
    passed: list[str] = []
    for path in reversed(steps(root).values()):
        wrong = damage(path)
        if wrong is None:
            return path, passed
        passed.append(f"{path.name}: {wrong}; passed over")
    return None, passed


def rotate(root: Path, keep: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beyond `keep`, never the newest and never the one that is named `best`."""
    if keep is None:
        return
    found = steps(root)
    newest = max(found, default=None)
    spare = [s for s in found if s != newest and found[s].name != best]
    kept = len(found) - len(spare)
    for step in spare[: max(0, len(spare) - max(0, keep - kept))]:
        shutil.rmtree(found[step])
