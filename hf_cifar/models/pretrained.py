"""The weights of a model, loaded whole or not at all. Every command loads them here."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_cifar.errors import UserError
from hf_cifar.models.model_files import ModelFiles
from hf_cifar.models.structure import head_name
from hf_cifar.text import visible

log = logging.getLogger(__name__)
# What a config may ask for beyond the weights that are there: a new head, and tensors that
# transformers takes apart or puts together.
SPARE_TENSORS, SPARE_ELEMENTS = 100, 100_000_000


def load_weights(
    files: ModelFiles,
    config: Any,
    *,
    new_head: bool = False,
    kind: Any = AutoModelForImageClassification,
) -> tuple[PreTrainedModel, bool]:
    """Return the model with its weights, float32 on the CPU, in evaluation mode, and whether its
    head is new.

    new_head: whether the classifier may be missing or of another shape; it is then drawn anew.
    kind: the class that loads the model.
    Tensors that have no place in the model are named in the log.

    Raises UserError for damaged files, for tensors that are missing, of another shape or not
    finite, and for a config that asks for a much larger model than the weights.
    """
    shapes, name = files.shapes, files.name
    sizes = [prod(shape) for shape in shapes.values()]
    too_large = f"{name}: its config.json describes a much larger model than its weights"
    with (
        files.for_library("transformers can't load it") as folder,
        at_most(4 * len(sizes) + SPARE_TENSORS, 2 * sum(sizes) + SPARE_ELEMENTS, too_large),
    ):
        model, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    model.name_or_path = model.config.name_or_path = files.repo
    misshapen = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    absent = [
        key
        for key in (*misshapen, *sorted(info["missing_keys"]))
        if not key.endswith("num_batches_tracked")
    ]
    head = f"{head_name(model)}."
    lost = [key for key in absent if not (new_head and key.startswith(head))]
    if lost:
        raise UserError(
            f"{name}: weights do not fit the config: {len(lost)} tensors are missing or of another"
            f" shape, first {visible(lost[0], 100)}; take both from one model"
        )
    if unused := [visible(key, 100) for key in sorted(info["unexpected_keys"])]:
        some = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
        log.info("%s: tensors without a place in the model: %d (%s)", name, len(unused), some)
    check_finite(model, name)
    return model, bool(absent)


def check_finite(model: nn.Module, name: str) -> None:
    """Raise UserError for weights or statistics that are not finite numbers."""
    tensors = model.state_dict()
    bad = [key for key, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise UserError(
            f"{name}: {len(bad)} of {len(tensors)} tensors hold values that are not finite, first"
            f" {bad[0]}; use another checkpoint"
        )


@contextlib.contextmanager
def at_most(tensors: int, elements: int, message: str) -> Iterator[None]:
    """Raise UserError in the block as soon as the modules built there have more parameters.

    A config that asks for a billion layers is stopped after the first few.
    """
    count = total = 0

    def add(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, total
        if parameter is not None:
            count += 1
            total += parameter.numel()
        if count > tensors or total > elements:
            raise UserError(message)

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()
