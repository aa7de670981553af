"""SIGTERM and SIGINT save a checkpoint at the next step and end the run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl

RELAYED = 2.0  # seconds within which a launcher passes a signal on


class StopOnSignal(TrainerCallback):
    """Stop at a checkpoint on SIGTERM or SIGINT; a second signal ends the process at once.

    Under a launcher, a signal within RELAYED seconds of the first is the same one: Slurm or the
    terminal and the launcher each send it.

    number: of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.time = 0.0
        # The highest number of all processes, and a CUDA event that says when it has arrived.
        self.pending: tuple[torch.Tensor, Any] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals while the block runs; only a process's main thread can."""
        previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for stop in (signal.SIGTERM, signal.SIGINT):
                previous[stop] = signal.signal(stop, self._handle)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.number is None:
            self.number, self.time = number, time.monotonic()
        elif "RANK" not in os.environ or time.monotonic() - self.time > RELAYED:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
            signal.raise_signal(number)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        number = self.number or 0
        if args.world_size > 1:  # all processes must stop at the same step
            number = self._highest_number(args.device)
            if number and self.number is None:
                self.number, self.time = number, time.monotonic()
        if number:
            control.should_save = control.should_training_stop = True

    def _highest_number(self, device: torch.device) -> int:
        """Return what the processes agreed on a step ago, so that the host waits for no more than
        the end of that step.
        """
        previous, arrived = self.pending or (torch.zeros((), dtype=torch.int64), None)
        number = torch.full((), self.number or 0, device=device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        number = number.to("cpu", non_blocking=True)
        event = None
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        self.pending = number, event
        if arrived is not None:
            arrived.synchronize()
        return int(previous)
