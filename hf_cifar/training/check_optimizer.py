"""The optimizer and schedule of a recipe, tried on one weight before anything is loaded."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from hf_cifar.errors import UserError
from hf_cifar.text import visible

# What some optimizers are given in place of parameters, which one weight can't stand for.
NEEDS_THE_MODEL = {"model", "params", "optimizer_dict"}


def check_optimizer(arguments: TrainingArguments) -> None:
    """Raise UserError for an optimizer or a schedule that can't be made.

    A package may be missing, and settings are checked by the optimizer and the schedule alone.
    """
    model: Any = nn.Linear(1, 1)
    schedule_settings: Any = arguments.lr_scheduler_kwargs
    key = "optim"
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        if settings.keys() & NEEDS_THE_MODEL:
            return
        optimizer = kind(model.parameters(), **settings)
        key = "lr_scheduler_type"
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=schedule_settings,
        )
    except Exception as error:  # each optimizer and schedule fails in its own way
        name = getattr(arguments, key)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{key}: {getattr(name, 'value', name)} can't be made with the recipe's settings:"
            f" {visible(reason, most=200)}"
        ) from None
