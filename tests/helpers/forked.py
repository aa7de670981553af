"""Starts of `hf-cifar train` in forked processes. They have everything imported: one that is killed
costs a second, not ten.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import Any

# noqa: F401  these wait in the program until they are needed, and would be imported by every fork
import evaluate
import sklearn.metrics  # noqa: F401
import torch.utils.flop_counter  # noqa: F401
import transformers.models.resnet.modeling_resnet
import transformers.models.vit.modeling_vit  # noqa: F401
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from test_run import BASE, TIMES

import hf_cifar.runs.run  # noqa: F401
from hf_cifar.cli import main

EVERY_3 = {
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 1,
}
WRITES = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.unlink")
ENDS_WITHIN = 30.0  # seconds, after another process of the run was killed


class DidNotEnd(Exception):
    """A process was still there when it should have ended; it is killed."""


@dataclass
class Place:
    """What a trial has to itself: the run folder, the cache, the recipe, and what its processes
    said.
    """

    root: Path
    model: Path
    keys: dict[str, Any]
    processes: int = 1
    images: Path | None = None  # a cache that holds the image tables already
    starts: int = 0
    run: Path = field(init=False)
    cache: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.run, self.cache = self.root / "run", self.root / "cache"
        if self.images is not None:
            shutil.copytree(
                self.images, self.cache, ignore=shutil.ignore_patterns("features", "*.lock")
            )
        text = yaml.safe_dump(BASE | EVERY_3 | {"model_name_or_path": str(self.model)} | self.keys)
        (self.root / "recipe.yaml").write_text(text)

    @property
    def log(self) -> Path:
        return self.root / f"start-{self.starts}.log"

    @property
    def words(self) -> list[str]:
        return ["train", str(self.root / "recipe.yaml"), "--output_dir", str(self.run)]

    def start(self, hook: Callable[[int], None] | None = None) -> dict[int, int]:
        """Fork the processes; {rank: pid}. hook(rank): called in each before it begins."""
        self.starts += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return {rank: self._fork(rank, port, hook) for rank in range(self.processes)}

    def _fork(self, rank: int, port: int, hook: Callable[[int], None] | None) -> int:
        if pid := os.fork():
            return pid
        code = 70
        try:
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = sys.stderr = open(handle, "w", buffering=1, closefd=False)  # noqa: SIM115
            logging.root.handlers.clear()
            for state in (PartialState, AcceleratorState, GradientState):
                state._shared_state.clear()
            os.environ["HF_CIFAR_CACHE"] = str(self.cache)
            if self.processes > 1:
                count = str(self.processes)
                os.environ |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": count,
                    "LOCAL_WORLD_SIZE": count,
                }
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            if hook is not None:
                hook(rank)
            code = main.run(self.words)
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            os._exit(code)

    def end(self, pids: dict[int, int], within: float = 120.0) -> dict[int, int]:
        """Wait for all; {rank: exit code, or minus the signal}. Where one fails the others are
        told, as a launcher does.
        """
        codes: dict[int, int] = {}
        told = False
        deadline = time.monotonic() + within
        while len(codes) < len(pids):
            for rank in pids.keys() - codes.keys():
                pid, status = os.waitpid(pids[rank], os.WNOHANG)
                if pid:
                    codes[rank] = os.waitstatus_to_exitcode(status)
            if any(codes.values()) and not told:
                told = True
                for rank in pids.keys() - codes.keys():
                    os.kill(pids[rank], signal.SIGTERM)
            if time.monotonic() > deadline:
                for rank in pids.keys() - codes.keys():
                    os.kill(pids[rank], signal.SIGKILL)
                    os.waitpid(pids[rank], 0)
                raise DidNotEnd(
                    f"after {within} s {sorted(pids.keys() - codes.keys())} ran on:\n{self.log.read_text()}"
                )
            time.sleep(0.002)
        return codes

    def go(self, hook: Callable[[int], None] | None = None) -> int:
        """One start to its end; the first process's exit code."""
        return self.end(self.start(hook))[0]

    def said(self) -> str:
        return self.log.read_text()

    def ended_in_one_line(self, code: int) -> str:
        """Asserts that the last start ended by itself with an error in one line, and returns it."""
        said = self.said()
        lines = [line for line in said.splitlines() if line.startswith("hf-cifar: ")]
        assert code in (1, 2) and len(lines) == 1 and "Traceback" not in said, (
            f"exit code {code}:\n{said}"
        )
        return lines[0]

    def result(self) -> dict[str, Any]:
        """What must be the same to the bit of a run that was stopped and of one that was not."""
        metrics = json.loads((self.run / "metrics.json").read_text())
        history = [
            {k: v for k, v in entry.items() if not k.endswith(TIMES)}
            for entry in metrics["history"]
        ]
        told = {
            k: v
            for k, v in metrics.items()
            if isinstance(v, float | int) and not any(t in k for t in TIMES)
        }
        told = {k: v for k, v in told.items() if not k.startswith(("peak_", "seconds_", "energy_"))}
        files = [self.run / n for n in ("model.safetensors", "config.json", "predictions.parquet")]
        files += sorted(self.run.glob("adapter/*.safetensors"))
        sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        return {"history": history, "numbers": told, "files": sums}


@dataclass
class Whole:
    """A run that nothing stopped: what it left, how long it took, and how many file operations each
    of its processes did.
    """

    result: dict[str, Any]
    seconds: float
    operations: dict[int, int]
    cache: Path


def quick_plots() -> None:
    """Drawing is more than half of a tiny run."""
    write_plots = lambda *_: []  # type: ignore[assignment]


def at_write(place: Place, number: int, do: Callable[[], None]) -> Callable[[], int]:
    """Let `do` be called when this process is about to change a file below the place for the nth
    time; counts them.
    """
    seen, root = 0, str(place.root)

    def audit(event: str, args: tuple) -> None:
        nonlocal seen
        if event not in WRITES or not str(args[0]).startswith(root):
            return
        if event == "open" and not (
            isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        ):
            return
        seen += 1
        if seen == number:
            do()

    sys.addaudithook(audit)
    return lambda: seen


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def whole(place: Place) -> Whole:
    """Run it undisturbed."""
    run = main.run

    def hook(rank: int) -> None:
        quick_plots()
        counted = at_write(place, -1, die)

        def and_tell(words: list[str]) -> int:
            code = run(words)
            (place.root / f"operations-{rank}").write_text(str(counted()))
            return code

        main.run = and_tell

    began = time.monotonic()
    assert place.go(hook) == 0, place.said()
    seconds = time.monotonic() - began
    counts = {
        rank: int((place.root / f"operations-{rank}").read_text())
        for rank in range(place.processes)
    }
    return Whole(place.result(), seconds, counts, place.cache)
