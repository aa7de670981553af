"""The heads of a model that answers several tasks: one linear layer over the classes of all tasks,
one task after the other, which is the same as a linear layer for each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.models.config import set_labels
from hf_cifar.models.structure import head


def joint_labels(tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a name for each output of the joint head, such as "kind: animal".

    tasks: the labels of each task, by its name.
    """
    return [f"{task}: {label}" for task, labels in tasks.items() for label in labels]


def task_columns(tasks: Mapping[str, Sequence[str]]) -> dict[str, slice]:
    """Return which outputs of the joint head are each task's."""
    columns: dict[str, slice] = {}
    start = 0
    for task, labels in tasks.items():
        columns[task] = slice(start, start + len(labels))
        start += len(labels)
    return columns


def write_tasks(config: Any, tasks: Mapping[str, Sequence[str]]) -> None:
    """Write into a config which tasks its model answers."""
    config.tasks = [{"name": task, "labels": list(labels)} for task, labels in tasks.items()]


def read_tasks(config: Any, where: str) -> dict[str, list[str]]:
    """Return what `write_tasks` wrote into a config, or {} for a model of one task.

    Raises UserError, which begins with `where`, for anything else.
    """
    entries = getattr(config, "tasks", None)
    if entries is None:
        return {}
    try:
        tasks = {entry["name"]: entry["labels"] for entry in entries}
        names = [*tasks, *(label for labels in tasks.values() for label in labels)]
        sound = len(tasks) == len(entries) and len(names) - len(tasks) == config.num_labels
        sound = sound and all(isinstance(name, str) for name in names)
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise UserError(
            f"{where}: its tasks are damaged; train it again, or name a model of one task"
        )
    return tasks


class UncertainHead(nn.Linear):
    """A joint head that also learns how uncertain each task is (Kendall et al. 2018).

    Its outputs are the logits [B, C], then in every row the logarithm of each task's variance, [T].
    It is part of the model, so that checkpoints, the optimizer and all processes have it.
    """

    def __init__(self, linear: nn.Linear, tasks: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight = linear.weight
        if linear.bias is not None:
            self.bias = linear.bias
        self.log_variances = nn.Parameter(torch.zeros(tasks))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits = super().forward(features)
        return torch.cat([logits, self.log_variances.expand(*logits.shape[:-1], -1)], dim=-1)


def learn_uncertainty(model: Any, tasks: int) -> None:
    """Put an `UncertainHead` in the place of the model's head, with the same weights."""
    name, linear = head(model)
    model.set_submodule(name, UncertainHead(linear, tasks))


def drop_uncertainty(model: Any) -> None:
    """Undo `learn_uncertainty`, and keep the weights."""
    name, linear = head(model)
    if isinstance(linear, UncertainHead):
        model.set_submodule(name, _part(linear, slice(0, linear.out_features)))


def keep_one_task(model: Any, columns: slice, labels: Sequence[str]) -> None:
    """Make a joint model one that answers a single task, in place."""
    name, linear = head(model)
    model.set_submodule(name, _part(linear, columns))
    set_labels(model.config, list(labels))


@torch.no_grad()
def _part(linear: nn.Linear, columns: slice) -> nn.Linear:
    """Return a layer with some of the outputs."""
    rows = linear.weight[columns].clone()
    part = nn.Linear(linear.in_features, len(rows), bias=linear.bias is not None)
    part.to(rows.device, rows.dtype)
    part.weight.copy_(rows)
    if linear.bias is not None:
        part.bias.copy_(linear.bias[columns])
    return part
