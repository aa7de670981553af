"""The speed of a run and its progress bar."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainingArguments


class Speed(TrainerCallback):
    """Steady-state images/s: from the end of one step to the end of the next, so fetching the batch
    and logging count and evaluating and saving do not; the first quarter of the steps is left out.
    On a GPU its own clock is read, at the end: the host only queues the work.
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
        self.images_per_step = (
            state.train_batch_size * args.gradient_accumulation_steps * args.world_size
        )

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
    """One bar: epoch, loss, learning rate, images/s, time left. The Trainer's own prints a dict a
    log instead.
    """

    def __init__(self, speed: Speed) -> None:
        super().__init__()
        self.speed = speed

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
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
