"""Low-rank adapters (Hu et al. 2021) through peft."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.models.structure import ATTENTION, blocks
from hf_cifar.recipe.fields import MethodKeys


def lora_targets(model: nn.Module, which: str | list[str]) -> list[str]:
    """Full names of the modules that get an adapter: linear layers of the blocks, or their dense
    convolutions where a block has no attention. A list names module name endings. Raises UserError
    with nothing to target.
    """
    inside = [(f"{b}.{n}", m) for b, block in blocks(model) for n, m in block.named_modules() if n]
    # Depthwise convolutions have one weight a channel and no rank to lower; padded subclasses
    # (timm) break peft's own conv.
    matrices = [
        n for n, m in inside if isinstance(m, nn.Linear) or (type(m) is nn.Conv2d and m.groups == 1)
    ]
    attention = [n for n in matrices if re.search(ATTENTION, n)]
    if isinstance(which, list):
        chosen = [n for n in matrices if any(n == w or n.endswith("." + w) for w in which)]
    elif which == "all" or not attention:
        chosen = matrices
    else:
        chosen = attention if which == "attention" else [n for n in matrices if n not in attention]
    if not chosen:
        ends = sorted({n.rsplit(".", 1)[-1] for n in matrices})
        have = (
            f"its blocks have {', '.join(ends)}"
            if ends
            else "it has no blocks with linear layers or dense convolutions"
        )
        raise UserError(
            f"lora_target_modules: {which} matches nothing in {type(model).__name__}; {have}"
        )
    return chosen


def with_lora(model: nn.Module, keys: MethodKeys, head_name: str, base_name: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    alpha: Any = keys.lora_alpha  # peft divides by r: a fraction is as good as its declared int
    config = LoraConfig(
        r=keys.lora_r,
        lora_alpha=alpha,
        lora_dropout=keys.lora_dropout,
        target_modules=lora_targets(model, keys.lora_target_modules),
        modules_to_save=[head_name],
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def save_adapter(model: Any, folder: Path) -> None:
    """peft's folder, with the position embeddings beside the adapter: they were resampled if the
    image size changed, and a base loaded at that size would draw them at random.
    """
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, all "More information needed"
    positions = {
        k: v
        for k, v in model.state_dict().items()
        if k.endswith(("position_embeddings", "pos_embed"))
    }
    weights = load_file(folder / "adapter_model.safetensors") | {
        k: v.cpu().contiguous() for k, v in positions.items()
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
