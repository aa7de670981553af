"""Checkpoints that appear whole or not at all, and that tell whether they are damaged.

A checkpoint is written aside, every file is listed with its SHA-256 in `checksums.json`, and the
folder is then renamed into place. A checkpoint without that list, or whose files differ from it, is
skipped on resume. It is also skipped if the best checkpoint that it refers to is damaged.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hf_cifar.files import file_digest, publish_folder, write_json

CHECKSUMS = "checksums.json"
WRITING = ".writing"  # the folder beside the checkpoints in which one is written


def seal(aside: Path, final: Path) -> None:
    """Add checksums to the folder `aside` and rename it to `final`, synced to disk."""
    files = sorted(p for p in aside.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    write_json(aside / CHECKSUMS, {str(p.relative_to(aside)): file_digest(p) for p in files})
    publish_folder(aside, final)


def damage(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file is as it was written."""
    try:
        checksums = dict(json.loads((folder / CHECKSUMS).read_text()))
    except FileNotFoundError:
        unfinished = f"has no {CHECKSUMS}: it was never finished"
        return unfinished if folder.is_dir() else "is missing"
    except (OSError, ValueError, TypeError):
        return f"{CHECKSUMS} can't be read"
    for name, expected in checksums.items():
        path = folder / name
        try:
            if file_digest(path) != expected:
                return f"{name} is not what was written ({path.stat().st_size:,} bytes)"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:
            return f"{name} can't be read ({error})"
    return None


def reason_to_skip(folder: Path) -> str | None:
    """Return why a run can't resume from a checkpoint: its own damage, or that of the best one.

    A best checkpoint that is gone is no reason: it may have made room for a better one, which a run
    that resumes here finds again.
    """
    if (own_damage := damage(folder)) is not None:
        return own_damage
    state = folder / "trainer_state.json"
    best_path = json.loads(state.read_text())["best_model_checkpoint"] if state.is_file() else None
    if not best_path:
        return None
    best = folder.with_name(Path(best_path).name)
    if best == folder or not best.is_dir() or (best_damage := damage(best)) is None:
        return None
    return f"{best_damage} in {best.name}, its best checkpoint"


def by_step(root: Path) -> dict[int, Path]:
    """Return step -> folder of every checkpoint in `root`, oldest first."""
    folders = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in root.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit()
    }
    return dict(sorted(folders.items()))


def newest(root: Path) -> Path | None:
    """Return the newest checkpoint in `root`, damaged or not."""
    return next(reversed(by_step(root).values()), None)


def last_good(root: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint to resume from, and a line for each one that was skipped."""
    skipped: list[str] = []
    for folder in reversed(by_step(root).values()):
        reason = reason_to_skip(folder)
        if reason is None:
            return folder, skipped
        skipped.append(f"{folder.name}: {reason}; skipped")
    return None, skipped


def rotate(root: Path, keep: int | None, written_step: int, best: str | None) -> None:
    """Remove checkpoints beyond `keep`; never the one just written, and never the one named `best`.

    Checkpoints past `written_step`, which the run skipped when it resumed, go first, then the
    oldest ones.
    """
    if keep is None:
        return
    folders = by_step(root)
    removable = [s for s in folders if s != written_step and folders[s].name != best]
    removable.sort(key=lambda step: (step < written_step, step))
    for step in removable[: max(0, len(folders) - max(keep, len(folders) - len(removable)))]:
        (root / WRITING).mkdir(exist_ok=True)
        # A kill must leave a checkpoint whole or gone, so it is renamed before it is removed.
        folders[step].rename(root / WRITING / "old")
        shutil.rmtree(root / WRITING)
