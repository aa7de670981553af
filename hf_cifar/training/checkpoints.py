"""Checkpoints that appear whole or not at all, and that say so.

A checkpoint is written aside, every file synced and listed with its SHA-256 in `checksums.json`,
and then renamed into place. One that lacks the list, or whose files differ from it, was cut short
or altered and is passed over; so is one of which the best checkpoint, which a run ends with, was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

CHECKSUMS = "checksums.json"
WRITING = ".writing"
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def refusal(error: BaseException) -> str | None:
    """Why a disk took no more, where that is what the error says: Python's own, safetensors' or
    torch's.
    """
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{os.strerror(error.errno)}{where}" if error.errno in REFUSALS else None
    text = str(error)
    if type(error).__name__ == "SafetensorError" and "os error" in text:
        return text.rpartition("I/O error: ")[2]
    if isinstance(error, RuntimeError) and ("inline_container" in text or "iostream error" in text):
        return "torch.save wrote a part"
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(*paths: Path) -> None:
    """Wait until files and folders are on the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def seal(aside: Path, final: Path) -> None:
    """Put checksums into the folder `aside`, sync it to disk and rename it to `final`; one that is
    there goes beside it.
    """
    files = sorted(p for p in aside.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    sums = {str(p.relative_to(aside)): sha256(p) for p in files}
    (aside / CHECKSUMS).write_text(json.dumps(sums, indent=1))
    sync(*files, aside / CHECKSUMS, aside)
    if final.exists():
        final.rename(aside.with_name("replaced"))
    aside.rename(final)
    sync(final.parent)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        sums = dict(json.loads((folder / CHECKSUMS).read_text()))
    except FileNotFoundError:
        return f"has no {CHECKSUMS}: it was never finished" if folder.is_dir() else "is missing"
    except (OSError, ValueError, TypeError):
        return f"{CHECKSUMS} is not readable"
    for name, expected in sums.items():
        path = folder / name
        try:
            if sha256(path) != expected:
                return f"{name} is not what was written ({path.stat().st_size:,} bytes)"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:
            return f"{name} is not readable ({error})"
    return None


def unusable(folder: Path) -> str | None:
    """Why a run can't go on from a checkpoint: its own damage, or that of the best one that it
    names.

    A best one that is gone may have made room for a better one, which a run that goes on from here
    finds again.
    """
    if (wrong := damage(folder)) is not None:
        return wrong
    state = folder / "trainer_state.json"
    named = json.loads(state.read_text())["best_model_checkpoint"] if state.is_file() else None
    best = folder.with_name(Path(named).name) if named else folder
    wrong = damage(best) if best.is_dir() and best != folder else None
    return f"{wrong} in {best.name}, the best then" if wrong else None


def steps(root: Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint below `root`, oldest first."""
    found = {
        int(p.name.removeprefix("checkpoint-")): p
        for p in root.glob("checkpoint-*")
        if p.name[11:].isdigit()
    }
    return dict(sorted(found.items()))


def last_good(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint to go on from, and a line for each one that was passed over."""
    passed: list[str] = []
    for path in reversed(steps(root).values()):
        wrong = unusable(path)
        if wrong is None:
            return path, passed
        passed.append(f"{path.name}: {wrong}; passed over")
    return None, passed


def rotate(root: Path, keep: int | None, written: int, best: str | None) -> None:
    """Remove checkpoints beyond `keep`: first those past the step that was just `written`, which
    this run passed over when it began, then the oldest; never that of the step and never the one
    that is named `best`.
    """
    if keep is None:
        return
    found = steps(root)
    spare = sorted(
        (s for s in found if s != written and found[s].name != best), key=lambda s: (s < written, s)
    )
    kept = len(found) - len(spare)
    for step in spare[: max(0, len(spare) - max(0, keep - kept))]:
        (root / WRITING).mkdir(exist_ok=True)
        found[step].rename(root / WRITING / "old")  # whole or not at all, also where this is killed
        shutil.rmtree(root / WRITING)
