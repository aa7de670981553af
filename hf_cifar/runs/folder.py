"""A run's folder: claimed by one recipe, locked while it trains, and holding a list of its files.

The marker `.hf_cifar.json` makes a folder a run: it lists every file that the run has written.
`--fresh` removes those and nothing else, and a folder without a marker must be empty.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_cifar.distributed import from_first_process, rank
from hf_cifar.errors import UserError
from hf_cifar.files import refused_write, sync, write_json, write_text
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training import checkpoints

log = logging.getLogger(__name__)
MARKER, LOCK, WRITING = ".hf_cifar.json", ".lock", ".writing"
CHECKPOINTS = "checkpoints"

# Keys that may differ between two starts of one run: they say where it runs or goes, not what it
# computes.
FREE_KEYS = {
    "output_dir",
    "bf16",
    "channels_last",
    "disable_tqdm",
    "use_cpu",
    "data_path",
    "per_device_eval_batch_size",
    "save_total_limit",
    "dataloader_num_workers",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "license",
}


class RunFolder:
    """The folder of a run in this process. Only the first process writes into it.

    path: the folder. recipe: the recipe to run, with the precision that an earlier start of the
    same run has chosen.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.path, self.recipe = recipe.output_dir, recipe

    @classmethod
    @contextlib.contextmanager
    def claim(cls, recipe: Recipe, fresh: bool) -> Iterator[RunFolder]:
        """Yield the folder of a recipe, locked, for a new run or for more of the same one.

        fresh: remove what an earlier run left in it. Every process calls this. Raises UserError
        where the folder belongs to something else, or where its disk takes no more.
        """
        folder = cls(recipe)
        with folder._locked() if rank() == 0 else contextlib.nullcontext():
            try:
                if rank() == 0:
                    if fresh:
                        folder._remove_run()
                    folder._begin()
                yield folder
            except Exception as error:
                if (reason := refused_write(error)) is None:
                    raise
                raise UserError(folder._full_disk(reason)) from None

    @classmethod
    @contextlib.contextmanager
    def reopen(cls, path: Path) -> Iterator[RunFolder]:
        """Yield the folder of a finished run, locked, wherever it lies now, to add to it.

        Raises UserError where another process uses it, or where its disk takes no more.
        """
        folder = cls(load_recipe(str(path / "recipe.yaml"), {"output_dir": str(path)}))
        with folder._locked():
            shutil.rmtree(path / WRITING, ignore_errors=True)  # what a killed process was writing
            try:
                yield folder
            except Exception as error:
                if (reason := refused_write(error)) is None:
                    raise
                raise UserError(f"{path}: cannot be written ({reason}); free some space") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"output_dir: {self.path}: {error.strerror}; name another folder"
            ) from None
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"output_dir: {self.path}: another process is training here; wait for it or name"
                " another folder"
            ) from None
        try:
            yield
        finally:
            # Removed while it is held: later it may be another process's.
            (self.path / LOCK).unlink(missing_ok=True)
            lock.release()

    # ---- what belongs to the run ----

    def _marker(self) -> dict[str, Any] | None:
        """Return the content of the marker, or None where there is none."""
        try:
            marker = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
            files = [str(name) for name in marker["files"]]
            return {"files": files, "dataset_path": marker.get("dataset_path")}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"output_dir: {self.path}/{MARKER}, the list of the run's files, is damaged;"
                " name another folder"
            ) from None

    def _record(self, names: list[str]) -> None:
        """Add files to the run's list. Raises UserError for one that somebody else put there."""
        before = self._marker() or {"files": [], "dataset_path": None}
        files = set(before["files"])
        for name in names:
            if name not in files and os.path.lexists(self.path / name):
                raise UserError(
                    f"output_dir: {self.path / name} is not this run's, and the run needs that"
                    " name; move it away and run the same command"
                )
        data = Path(self.recipe.dataset_name).expanduser()
        marker = {
            "about": "a run of hf-cifar; --fresh removes these files",
            "files": sorted(files | set(names)),
            # `evaluate` finds the data again from any folder. This file is never pushed.
            # Seen from another working folder, the recipe's path may lead nowhere.
            "dataset_path": str(data.resolve()) if data.exists() else before["dataset_path"],
        }
        write_json(self.path / MARKER, marker)

    def _begin(self) -> None:
        """Mark the folder as this recipe's run, or make sure that it is already.

        Raises UserError for a folder that holds something else, or a run of another recipe.
        """
        if self._marker() is None:
            others = [
                path.name
                for path in self.path.iterdir()
                if path.name != LOCK and not path.name.startswith(MARKER)
            ]
            if others:
                raise UserError(
                    f"output_dir: {self.path} holds something else than a run ({min(others)});"
                    " name another folder"
                )
            self._record([])
        # What a killed process was writing.
        shutil.rmtree(self.path / WRITING, ignore_errors=True)
        for name in (MARKER, "recipe.yaml"):
            for temporary in self.path.glob(f"{name}.*-*.tmp"):
                temporary.unlink()
        if not (self.path / "recipe.yaml").is_file():
            return
        before = load_recipe(str(self.path / "recipe.yaml"))
        old, new = before.to_dict(), self.recipe.to_dict()
        different = [
            key for key in {**old, **new} if key not in FREE_KEYS and old.get(key) != new.get(key)
        ]
        if different:
            parts = [f"{key} ({old.get(key)} there, {new.get(key)} here)" for key in different[:5]]
            raise UserError(
                f"output_dir: {self.path} holds a run of another recipe: {', '.join(parts)};"
                " name another output_dir or start over with --fresh"
            )
        training = dict(self.recipe.training)
        if training["bf16"] is None:
            training["bf16"] = before.training["bf16"]
        channels_last = self.recipe.channels_last
        if channels_last is None:
            channels_last = before.channels_last
        self.recipe = dataclasses.replace(
            self.recipe, training=training, channels_last=channels_last
        )

    def _remove_run(self) -> None:
        """Remove the files on the run's list, and its checkpoints.

        Raises UserError, before anything is removed, where one of them is no longer what the run
        wrote: a link, or a folder in place of a file.
        """
        marker = self._marker()
        if marker is None:
            return  # `_begin` refuses what is not empty
        files = [self.path / name for name in marker["files"] if os.path.lexists(self.path / name)]
        # Each folder below the run's comes before the one that it stands in.
        above = {parent for file in files for parent in file.relative_to(self.path).parents}
        folders = sorted((self.path / parent for parent in above - {Path()}), reverse=True)
        saved = self.path / CHECKPOINTS
        replaced = [file for file in files if file.is_symlink() or not file.is_file()]
        replaced += [
            p for p in (*folders, saved) if p.is_symlink() or (p.exists() and not p.is_dir())
        ]
        if replaced:
            raise UserError(
                f"output_dir: {replaced[0]} is a link or of another kind than the run wrote, so"
                " --fresh removes nothing; remove it yourself or name another folder"
            )
        # metrics.json first: without it the run is unfinished, also if this is killed.
        for file in sorted(files, key=lambda path: path.name != "metrics.json"):
            log.warning("--fresh: removing %s", file)
            file.unlink()
        if saved.is_dir():
            log.warning("--fresh: removing %s", saved)
            for path in (*checkpoints.by_step(saved).values(), saved / checkpoints.WRITING):
                shutil.rmtree(path, ignore_errors=True)
            # tensorboard's logs, and the pictures that a masked autoencoder draws
            for name in ("runs", "reconstructions"):
                shutil.rmtree(saved / name, ignore_errors=True)
            folders.append(saved)
        for folder in folders:
            with contextlib.suppress(OSError):  # it holds something that is not the run's
                folder.rmdir()
        (self.path / MARKER).unlink()
        if left := [p.name for p in self.path.iterdir() if p.name != LOCK]:
            self._record([])
            log.warning("--fresh: %s stays, it is not the run's", ", ".join(sorted(left)))

    def _full_disk(self, reason: str) -> str:
        checkpoint, _ = checkpoints.last_good(self.path / CHECKPOINTS)
        resume = (
            f"it resumes from {checkpoint.name}" if checkpoint else "it starts from the beginning"
        )
        return (
            f"output_dir: cannot write to {self.path} ({reason}); free some space and run the same"
            f" command: {resume}"
        )

    # ---- writing ----

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the recipe as it was resolved. Only the first process writes."""
        if rank() == 0:
            self._record(["recipe.yaml"])
            write_text(self.path / "recipe.yaml", recipe.to_yaml())

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield an empty folder, and move what the block wrote there into the run's folder.

        metrics.json comes last: it says that everything else is there.
        """
        aside = self.path / WRITING
        aside.mkdir()
        umask = os.umask(0)
        os.umask(umask)
        try:
            yield aside
            files = sorted(path for path in aside.rglob("*") if path.is_file())
            for file in files:
                file.chmod(0o666 & ~umask)  # safetensors keeps files to their owner
            sync(*files)
            names = [file.relative_to(aside).as_posix() for file in files]
            self._record(names)
            for name in sorted(names, key=lambda name: name == "metrics.json"):
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).replace(self.path / name)
            sync(self.path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def finished_metrics(self) -> dict[str, Any] | None:
        """Return the metrics of a finished run, or None. Every process calls this.

        Raises UserError where metrics.json is damaged.
        """
        path = self.path / "metrics.json"
        if not from_first_process(path.is_file()):
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(
                f"{self.path}: metrics.json is damaged ({error}); remove it and run the same"
                " command"
            ) from None
