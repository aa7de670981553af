"""What FSDP2 and ZeRO need beyond accelerate: the modules to gather at a time, and one whole model
when training is over.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from hf_cifar.models.structure import blocks


def wrap_classes(model: nn.Module) -> list[str]:
    """Return the class names of the model's blocks: what is gathered at a time.

    transformers' own lists (`_no_split_modules`) name whole stages of Swin and ConvNeXt, and ViT's
    embeddings, a part of which accelerate (1.15) then shards twice and fails.
    """
    return sorted({type(block).__name__ for _, block in blocks(model)})


def empty_copy(model: nn.Module) -> Any:
    """Return the same model with parameters that take no memory, to be filled after training.

    Make it before the model is sharded.
    """
    empty = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)


def gathered_state(model: nn.Module) -> dict[str, Any]:
    """Return the whole state of a sharded model on the CPU of the first process, and an empty one
    in the others. Every process must call this.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)
