"""Ways to watch and disturb a training run from outside, by the hooks that the libraries offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS


class Stopped(Exception):
    """Stands for a loss of power."""


def add_trainer_callbacks(*callbacks: TrainerCallback) -> None:
    """Give every Trainer that is made from here on these callbacks too."""
    DEFAULT_CALLBACKS.extend(callbacks)


@contextmanager
def trainer_callbacks(*callbacks: TrainerCallback) -> Iterator[None]:
    """`add_trainer_callbacks` while the block runs."""
    add_trainer_callbacks(*callbacks)
    try:
        yield
    finally:
        del DEFAULT_CALLBACKS[-len(callbacks) :]


class BeforeForward(TrainerCallback):
    """Call `look(state, inputs)` before each forward pass of training; inputs: the model's keyword
    arguments.
    """

    def __init__(self, look: Callable[[Any, dict[str, Any]], None]) -> None:
        self.look = look
        self.hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.hook is not None:  # training begins again with a smaller batch
            self.hook.remove()

        def before(model: nn.Module, _: Any, inputs: dict[str, Any]) -> None:
            if model.training:
                self.look(state, inputs)

        self.hook = kwargs["model"].register_forward_pre_hook(before, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hook.remove()
        self.hook = None


class AfterPrediction(TrainerCallback):
    """Call `action()` each time that a split has been scored after training."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        self.action()


def stop() -> None:
    raise Stopped


@contextmanager
def stopped_in_step(step: int) -> Iterator[None]:
    """Let training stop in the middle of its nth forward pass, counted from here."""
    passes = 0

    def count(state: Any, inputs: dict[str, Any]) -> None:
        nonlocal passes
        passes += 1
        if passes == step:
            stop()

    with trainer_callbacks(BeforeForward(count)), pytest.raises(Stopped):
        yield


@contextmanager
def images_seen() -> Iterator[list[int]]:
    """Yield a list that gets the number of images of each pass through a model's first layer, which
    in every family is a convolution of three channels.
    """
    seen: list[int] = []

    def note(module: nn.Module, args: tuple) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            seen.append(len(args[0]))

    hook = register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()
