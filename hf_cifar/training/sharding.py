"""What FSDP2 and ZeRO need beyond accelerate: which modules are gathered at a time, and one whole
model at the end.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from hf_cifar.models.structure import blocks


def wrap_classes(model: nn.Module) -> list[str]:
    """Class names of the model's blocks: what is gathered at a time.

    transformers' own lists (`_no_split_modules`) name whole stages of Swin and ConvNeXt, and ViT's
    embeddings, of which accelerate (1.15) then shards a part twice and fails.
    """
    return sorted({type(block).__name__ for _, block in blocks(model)})


def empty_copy(model: nn.Module) -> Any:
    """The same model with parameters that take no memory, to be filled when training is over; made
    before it is sharded.
    """
    empty = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)


def gathered(model: nn.Module) -> dict[str, Any]:
    """The whole state of a sharded model, on the CPU of the first process and empty on the others.
    Every process calls it.
    """
    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
