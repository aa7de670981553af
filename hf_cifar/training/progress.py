"""The speed of a run, and its progress: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainingArguments

LINES = 10  # that tell the progress of a pass over images where there is no bar


class Speed(TrainerCallback):
    """Measures the steady speed of training.

    A step counts from the end of the step before it to its own end, so with fetching the batch and
    logging, but without evaluating and saving. The first quarter of the steps is left out. On a GPU
    the GPU's own clock is read, at the end, because the host only queues the work.
    """

    def __init__(self) -> None:
        self.images_per_step = 0  # over all processes and accumulation; known when training begins
        self.spans: list[tuple[Any, Any]] = []
        self.last: Any = None

    @staticmethod
    def _now(args: TrainingArguments) -> Any:
        """Return seconds, or a CUDA event that stands for the time when the GPU gets to it."""
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
        """Return images a second; None before there are four steps."""
        if len(self.spans) < 4:
            return None
        spans = self.spans[len(self.spans) // 4 :]
        if not isinstance(spans[0][0], float):
            torch.cuda.synchronize()
        seconds = sum(
            end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
            for start, end in spans
        )
        return self.images_per_step * len(spans) / seconds


def training_progress(speed: Speed) -> TrainerCallback:
    """Return the callback that shows the progress of training: a bar if standard error is a
    terminal, else a line at each log.
    """
    return ProgressBar(speed) if sys.stderr.isatty() else ProgressLines(speed)


@contextlib.contextmanager
def image_progress(title: str, total: int, enabled: bool) -> Iterator[Any]:
    """Show the progress of a pass over `total` images: a bar if standard error is a terminal, else
    ten lines. Gives an object whose `update(n)` counts n more images.
    """
    if not enabled or sys.stderr.isatty():
        with tqdm(total=total, desc=title, unit=" images", disable=not enabled) as bar:
            yield bar
    else:
        yield ImageLines(title, total)


class ImageLines:
    """Writes a line each time that another tenth of the images is done."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.start = time.monotonic()

    def update(self, images: int) -> None:
        before, self.done = self.done, self.done + images
        if self.done * LINES // self.total > before * LINES // self.total:
            seconds = time.monotonic() - self.start
            left = _clock(seconds * (self.total - self.done) / self.done)
            _write_line(f"{self.title}: {self.done:,} of {self.total:,} images, {left} left")


class ProgressBar(ProgressCallback):
    """Shows epoch, loss, learning rate, images/s and time left in one bar, where the Trainer's own
    callback prints a dict at each log.
    """

    def __init__(self, speed: Speed) -> None:
        super().__init__()
        self.speed = speed

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        if self.training_bar is None or not logs:
            return
        if "eval_loss" in logs:
            self.training_bar.write(_evaluation_text(state, logs), file=sys.stderr)
        elif "loss" in logs:
            steps_per_second = self.training_bar.format_dict.get("rate") or 0.0
            rate = steps_per_second * self.speed.images_per_step
            self.training_bar.set_postfix_str(_training_text(state, logs, rate))


class ProgressLines(TrainerCallback):
    """Writes one line at each log, for files and pipes."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.start, self.first_step = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start, self.first_step = time.monotonic(), state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            _write_line(_evaluation_text(state, logs))
        elif "loss" in logs:
            seconds = time.monotonic() - self.start
            steps = state.global_step - self.first_step
            rate = steps * self.speed.images_per_step / seconds
            left = _clock(seconds / steps * (state.max_steps - state.global_step))
            _write_line(
                f"step {state.global_step} of {state.max_steps},"
                f" {_training_text(state, logs, rate)}, {left} left"
            )


def _training_text(state: Any, logs: dict[str, float], images_per_second: float) -> str:
    return (
        f"epoch {state.epoch:.2f}, loss {logs['loss']:.4f}, lr {logs['learning_rate']:.2e},"
        f" {images_per_second:.0f} images/s"
    )


def _evaluation_text(state: Any, logs: dict[str, float]) -> str:
    scores = [f"loss {logs['eval_loss']:.4f}"]
    if "eval_accuracy" in logs:
        scores.insert(0, f"accuracy {logs['eval_accuracy']:.4f}")
    return f"step {state.global_step}, epoch {state.epoch:.2f}: validation {', '.join(scores)}"


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _write_line(text: str) -> None:
    with contextlib.suppress(OSError):  # a log that is full or closed must not stop a training
        sys.stderr.write(f"{text}\n")
