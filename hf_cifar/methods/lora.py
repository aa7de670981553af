"""LoRA (Hu et al. 2021): low-rank adapters and the head train, through peft."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.methods.base import Learner, Method, Setup
from hf_cifar.methods.gradient_learner import GradientLearner
from hf_cifar.methods.trainable import keep_frozen_norms_in_eval_mode
from hf_cifar.models.structure import ATTENTION, blocks, head
from hf_cifar.recipe.recipe import public_name


class Lora(Method):
    """Low-rank adapters and the head train. The run saves the adapter, and the merged model."""

    description: ClassVar[str] = "fine-tuned with LoRA"
    tags: ClassVar[tuple[str, ...]] = ("lora", "peft")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return a `peft.PeftModel` around the model."""
        recipe = self.recipe
        alpha: Any = recipe.lora_alpha  # peft declares an int and takes a fraction as well
        config = LoraConfig(
            r=recipe.lora_r,
            lora_alpha=alpha,
            lora_dropout=recipe.lora_dropout,
            target_modules=lora_targets(model, recipe.lora_target_modules),
            modules_to_save=[head(model)[0]],
        )
        peft_model: Any = get_peft_model(model, config)  # type: ignore[arg-type]
        base_name = public_name(recipe.model_name_or_path)
        peft_model.peft_config["default"].base_model_name_or_path = base_name
        keep_frozen_norms_in_eval_mode(peft_model)
        return peft_model

    def learner(self, setup: Setup) -> Learner:
        return GradientLearner(setup)

    def save(self, model: Any, folder: Path) -> None:
        """Write `adapter/`, and the merged model beside it."""
        save_adapter(model, folder / "adapter")
        super().save(model.merge_and_unload(), folder)

    def facts(self) -> dict[str, Any]:
        recipe = self.recipe
        settings = {
            "r": recipe.lora_r,
            "alpha": recipe.lora_alpha,
            "target": recipe.lora_target_modules,
        }
        return super().facts() | {"adapter": True, "lora": settings}

    def passes(self, trainable_share: float) -> float:
        return 2.0  # frozen weights need no gradients of their own


def lora_targets(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Return the full names of the modules that get an adapter.

    targets: `attention`, `mlp` or `all` linear layers of the blocks, or dense convolutions where a
    block has no attention; or a list of module name endings. Raises UserError where none match.
    """
    modules = [
        (f"{block_name}.{name}", module)
        for block_name, block in blocks(model)
        for name, module in block.named_modules()
        if name
    ]
    # Depthwise convolutions have one weight a channel and no rank to lower, and peft's convolution
    # breaks padded subclasses (timm's).
    matrices = [
        name
        for name, module in modules
        if isinstance(module, nn.Linear) or (type(module) is nn.Conv2d and module.groups == 1)
    ]
    attention = [name for name in matrices if re.search(ATTENTION, name)]
    if isinstance(targets, list):
        chosen = [n for n in matrices if any(n == t or n.endswith(f".{t}") for t in targets)]
    elif targets == "all" or not attention:
        chosen = matrices
    elif targets == "attention":
        chosen = attention
    else:
        chosen = [name for name in matrices if name not in attention]
    if not chosen:
        endings = sorted({name.rsplit(".", 1)[-1] for name in matrices})
        have = f"its blocks have {', '.join(endings)}"
        if not endings:
            have = "it has no blocks with linear layers or dense convolutions"
        raise UserError(
            f"lora_target_modules: {targets} matches nothing in {type(model).__name__}; {have}"
        )
    return chosen


def save_adapter(model: Any, folder: Path) -> None:
    """Write peft's folder, with the position embeddings beside the adapter.

    They were resampled if the image size changed, and a base that is loaded at that size would draw
    them at random.
    """
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card says "More information needed"
    path = folder / "adapter_model.safetensors"
    positions = {
        name: tensor.cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name.endswith(("position_embeddings", "pos_embed"))
    }
    save_file(load_file(path) | positions, path, metadata={"format": "pt"})
