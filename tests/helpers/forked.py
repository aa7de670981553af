"""Runs in forked processes, which have everything imported already: starting one again after a kill
takes a second, not ten.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import evaluate  # noqa: F401  # these wait until they are needed, and every fork would import them
import sklearn.metrics  # noqa: F401
import torch.utils.flop_counter  # noqa: F401
import transformers.models.resnet.modeling_resnet
import transformers.models.vit.modeling_vit  # noqa: F401
from accelerate.state import AcceleratorState, GradientState, PartialState
from helpers.runs import (
    CHECKPOINT_EVERY_3,
    log_without_times,
    repeatable_metrics,
    skip_drawing,
    write_recipe,
)

import hf_cifar.runs.run  # noqa: F401
from hf_cifar.cli import main

CHANGES = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.unlink")
# Seconds within which the others end once one process of a run was killed.
ENDS_WITHIN = 30.0


class StillRunning(Exception):
    """A process ran on when it should have ended; it was killed."""


@dataclass
class ForkedRun:
    """The recipe, run folder and cache of a run, and the log of its newest start.

    images: a cache that holds the decoded images already. drawing: whether plots are drawn.
    """

    root: Path
    model: Path
    keys: dict[str, Any]
    processes: int = 1
    images: Path | None = None
    drawing: bool = False
    starts: int = 0
    folder: Path = field(init=False)
    cache: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.folder, self.cache = self.root / "run", self.root / "cache"
        if self.images is not None:
            features = shutil.ignore_patterns("features", "*.lock")
            shutil.copytree(self.images, self.cache, ignore=features)
        keys = CHECKPOINT_EVERY_3 | {"logging_steps": 1} | self.keys
        write_recipe(self.root / "recipe.yaml", self.model, **keys)

    @property
    def log(self) -> Path:
        return self.root / f"start-{self.starts}.log"

    @property
    def words(self) -> list[str]:
        """The command line behind `hf-cifar`."""
        return ["train", str(self.root / "recipe.yaml"), "--output_dir", str(self.folder)]

    def start(self, prepare: Callable[[int], None] | None = None) -> dict[int, int]:
        """Fork the processes and return {rank: pid}; each calls `prepare(rank)` first."""
        self.starts += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return {rank: self._fork(rank, port, prepare) for rank in range(self.processes)}

    def _fork(self, rank: int, port: int, prepare: Callable[[int], None] | None) -> int:
        if pid := os.fork():
            return pid
        code = 70
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout = sys.stderr = open(log, "w", buffering=1, closefd=False)  # noqa: SIM115
            logging.root.handlers.clear()
            for state in (PartialState, AcceleratorState, GradientState):
                state._shared_state.clear()
            os.environ["HF_CIFAR_CACHE"] = str(self.cache)
            if self.processes > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank}
                names |= {"WORLD_SIZE": self.processes, "LOCAL_WORLD_SIZE": self.processes}
                os.environ |= {name: str(number) for name, number in names.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            if not self.drawing:
                skip_drawing()
            if prepare is not None:
                prepare(rank)
            code = main.run(self.words)
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            os._exit(code)

    def wait(self, pids: dict[int, int], within: float = 120.0) -> dict[int, int]:
        """Wait for all and return {rank: exit code, or minus the signal}. Where one fails the
        others get SIGTERM, as from a launcher. Raises StillRunning after `within` seconds.
        """
        codes: dict[int, int] = {}
        terminated = False
        deadline = time.monotonic() + within
        while len(codes) < len(pids):
            for rank in pids.keys() - codes.keys():
                pid, status = os.waitpid(pids[rank], os.WNOHANG)
                if pid:
                    codes[rank] = os.waitstatus_to_exitcode(status)
            running = sorted(pids.keys() - codes.keys())
            if any(codes.values()) and not terminated:
                terminated = True
                for rank in running:
                    os.kill(pids[rank], signal.SIGTERM)
            if time.monotonic() > deadline:
                for rank in running:
                    os.kill(pids[rank], signal.SIGKILL)
                    os.waitpid(pids[rank], 0)
                raise StillRunning(f"{running} ran on after {within} s:\n{self.output()}")
            time.sleep(0.002)
        return codes

    def run_to_end(self, prepare: Callable[[int], None] | None = None) -> int:
        """Start once, wait, and return the first process's exit code."""
        return self.wait(self.start(prepare))[0]

    def output(self) -> str:
        """Return what the processes of the newest start printed."""
        return self.log.read_text()

    def one_line_error(self, code: int) -> str:
        """Assert that the newest start ended with an error of one line, and return the line."""
        lines = [line for line in self.output().splitlines() if line.startswith("hf-cifar: ")]
        in_one_line = code in (1, 2) and len(lines) == 1 and "Traceback" not in self.output()
        assert in_one_line, f"exit code {code}:\n{self.output()}"
        return lines[0]

    def outcome(self) -> dict[str, Any]:
        """Return what must be the same, to the bit, whether or not the run was stopped."""
        metrics = json.loads((self.folder / "metrics.json").read_text())
        names = ("model.safetensors", "config.json", "predictions.parquet")
        files = [self.folder / name for name in names]
        files += sorted(self.folder.glob("adapter/*.safetensors"))
        return {
            "log": log_without_times(metrics),
            "metrics": repeatable_metrics(metrics),
            "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        }


def _on_change(root: Path, action: Callable[[str], None]) -> None:
    """Call `action(path)` each time that this process is about to change a file below `root`."""

    def audit(event: str, args: tuple) -> None:
        if event not in CHANGES or not str(args[0]).startswith(str(root)):
            return
        flags = args[2] if event == "open" else None
        if event == "open" and not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
            return
        action(str(args[0]))

    sys.addaudithook(audit)


def call_at_change(root: Path, number: int, action: Callable[[], None]) -> None:
    """Call `action` before this process's nth change of a file below `root`."""
    changes = 0

    def count(_: str) -> None:
        nonlocal changes
        changes += 1
        if changes == number:
            action()

    _on_change(root, count)


def call_at_path(root: Path, pattern: str, action: Callable[[], None], change: int = 1) -> None:
    """Call `action` before this process's nth change of files below `root` whose paths fit the
    pattern.
    """
    changes = 0

    def compare(path: str) -> None:
        nonlocal changes
        changes += fnmatch.fnmatch(path, pattern)
        if changes == change and fnmatch.fnmatch(path, pattern):
            action()

    _on_change(root, compare)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Undisturbed:
    """A run that nothing stopped: its outcome, its seconds, how many changes of files each of its
    processes made, and its cache.
    """

    outcome: dict[str, Any]
    seconds: float
    changes: dict[int, int]
    cache: Path


def run_undisturbed(run: ForkedRun) -> Undisturbed:
    counters = [RawValue("q", 0) for _ in range(run.processes)]  # in memory that forks share

    def prepare(rank: int) -> None:
        def count(_: str) -> None:
            counters[rank].value += 1

        _on_change(run.root, count)

    start = time.monotonic()
    assert run.run_to_end(prepare) == 0, run.output()
    seconds = time.monotonic() - start
    changes = {rank: counter.value for rank, counter in enumerate(counters)}
    return Undisturbed(run.outcome(), seconds, changes, run.cache)
