"""SIGTERM and SIGINT save a checkpoint at the next step and end the run."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl

RELAYED = 2.0  # seconds in which a launcher passes on a signal


class Interrupted(Exception):
    """SIGTERM or SIGINT came. `signal` is its number; newest: name of the newest checkpoint, if
    there is one.
    """

    def __init__(self, number: int, newest: str | None) -> None:
        kept = (
            f"{newest} is saved; the same command goes on from there"
            if newest
            else "there is no checkpoint to go on from"
        )
        super().__init__(f"{signal.Signals(number).name}: {kept}")
        self.signal = number


class Interrupt(TrainerCallback):
    """On SIGTERM or SIGINT: a checkpoint at the next step, then out. A second signal leaves at
    once; but under a launcher what comes within RELAYED seconds is the first once more, from Slurm
    or the terminal and from the launcher.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.came, self.before = 0.0, dict[int, Any]()
        self.told: tuple[torch.Tensor, Any] | None = (
            None  # the greatest of all processes' numbers, and when it is there
        )

    def listen(self) -> None:
        """Begin to catch the signals; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._came)

    def leave(self) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before.clear()

    def _came(self, number: int, frame: Any) -> None:
        if self.number is None:
            self.number, self.came = number, time.monotonic()
        elif "RANK" not in os.environ or time.monotonic() - self.came > RELAYED:
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )
            signal.raise_signal(number)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if (
            args.world_size > 1
        ):  # the processes must leave at the same step, whichever was told first
            agreed = self._ask(args.device)
            if agreed and self.number is None:
                self.number, self.came = agreed, time.monotonic()
        else:
            agreed = self.number or 0
        if agreed:
            control.should_save = control.should_training_stop = True

    def _ask(self, device: torch.device) -> int:
        """What the processes said a step ago, so that the host waits for no more than that step's
        end.
        """
        before, arrived = self.told or (torch.zeros((), dtype=torch.int64), None), None
        number = torch.full((), self.number or 0, device=device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        number = number.to("cpu", non_blocking=True)
        if device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        self.told = number, arrived
        if before[1] is not None:
            before[1].synchronize()
        return int(before[0])
