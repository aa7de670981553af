"""What watches a run: its speed, its progress bar, and signals that stop it at a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainingArguments

RELAYED = 2.0  # seconds in which a launcher passes on a signal


class Speed(TrainerCallback):
    """Steady-state images/s: from the end of one step to the end of the next, so fetching the batch and logging count and
    evaluating and saving do not; the first quarter of the steps is left out. On a GPU its own clock is read, at the end: the
    host only queues the work.
    """

    def __init__(self) -> None:
        self.images_per_step = 0  # over all processes and accumulation; known when training begins
        self.spans: list[tuple[Any, Any]] = []
        self.last: Any = None

    @staticmethod
    def _now(args: TrainingArguments) -> Any:
        if args.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = None
        self.spans.clear()  # of a start with a batch that did not fit (`auto_find_batch_size`)
        self.images_per_step = state.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.last is None:
            self.last = self._now(args)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self._now(args)
        self.spans.append((self.last, now))
        self.last = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = None

    def steady(self) -> float | None:
        """Images a second, or None before there are four steps."""
        if len(self.spans) < 4:
            return None
        kept = self.spans[len(self.spans) // 4 :]
        if not isinstance(kept[0][0], float):
            torch.cuda.synchronize()
        seconds = sum(b - a if isinstance(a, float) else a.elapsed_time(b) / 1000 for a, b in kept)
        return self.images_per_step * len(kept) / seconds


class Progress(ProgressCallback):
    """One bar: epoch, loss, learning rate, images/s, time left. The Trainer's own prints a dict a log instead."""

    def __init__(self, speed: Speed) -> None:
        super().__init__()
        self.speed = speed

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        if "eval_accuracy" in logs:
            self.training_bar.write(
                f"epoch {state.epoch:.2f}, step {state.global_step}: validation accuracy {logs['eval_accuracy']:.4f},"
                f" loss {logs['eval_loss']:.4f}"
            )
        elif "loss" in logs:
            rate = self.training_bar.format_dict.get("rate") or 0.0
            self.training_bar.set_postfix_str(
                f"epoch {state.epoch:.2f}, loss {logs['loss']:.4f}, lr {logs['learning_rate']:.2e},"
                f" {rate * self.speed.images_per_step:.0f} images/s"
            )


class Interrupted(Exception):
    """SIGTERM or SIGINT came. `signal` is its number; newest: name of the newest checkpoint, if there is one."""

    def __init__(self, number: int, newest: str | None) -> None:
        kept = f"{newest} is saved; the same command goes on from there" if newest else "there is no checkpoint to go on from"
        super().__init__(f"{signal.Signals(number).name}: {kept}")
        self.signal = number


class Interrupt(TrainerCallback):
    """On SIGTERM or SIGINT: a checkpoint at the next step, then out. A second signal leaves at once; but under a launcher what
    comes within RELAYED seconds is the first once more, from Slurm or the terminal and from the launcher.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.came, self.before = 0.0, dict[int, Any]()
        self.told: tuple[torch.Tensor, Any] | None = None  # the greatest of all processes' numbers, and when it is there

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
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:  # the processes must leave at the same step, whichever was told first
            agreed = self._ask(args.device)
            if agreed and self.number is None:
                self.number, self.came = agreed, time.monotonic()
        else:
            agreed = self.number or 0
        if agreed:
            control.should_save = control.should_training_stop = True

    def _ask(self, device: torch.device) -> int:
        """What the processes said a step ago, so that the host waits for no more than that step's end."""
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
