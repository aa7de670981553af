"""What of a backbone trains, at which rate, and what happens to the rest.

Blocks and projections are found by looking at the model, never by a family's names, so that all of it holds across
families and library versions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from hf_cifar.backbones import blocks, head
from hf_cifar.errors import UserError
from hf_cifar.keys import AdaptationKeys

ATTENTION = r"(^|[._])(self_)?att(n|ention)"  # in a module's name


def adapt(model: nn.Module, keys: AdaptationKeys, base_name: str) -> nn.Module:
    """The model (for `lora` a `peft.PeftModel` around it) with `requires_grad` set as `keys.method` says, and the named groups.

    The head trains unless `freeze_groups` names it. Batch norms whose weights are frozen stay in eval mode, so that their
    statistics are the pretrained ones. Raises UserError where there is nothing to adapt.
    """
    name, linear = head(model)
    if keys.method == "lora":
        model = _lora(model, keys, name, base_name)
    else:
        model.requires_grad_(keys.method == "full")
        if keys.method == "partial":
            _unfreeze_last(model, keys.unfreeze_blocks)
        linear.requires_grad_(True)
    for key, trains in (("unfreeze_groups", True), ("freeze_groups", False)):
        for group in getattr(keys, key) or []:
            for parameter in _members(model, group, key):
                parameter.requires_grad_(trains)
    _keep_frozen_norms(model)
    return model


def _unfreeze_last(model: nn.Module, count: int) -> None:
    found = blocks(model)
    if count == 0:
        return
    if count > len(found):
        raise UserError(f"unfreeze_blocks: {count} is more than the {len(found)} blocks that this model has")
    for name in from_block(model, len(found) - count):
        model.get_parameter(name).requires_grad_(True)


def from_block(model: nn.Module, first: int) -> list[str]:
    """Names of the parameters of block `first` (of `backbones.blocks`) and of all that comes after it; with as many as there
    are blocks, of what comes after the last one.
    """
    names, last, kept = [name for name, _ in blocks(model)], -1, []
    for name, _ in model.named_parameters():  # registered in forward order: embeddings, blocks, what comes after them
        inside = next((i for i, block in enumerate(names) if name.startswith(block + ".")), None)
        last = last if inside is None else inside
        if last >= first or (inside is None and 0 <= last == len(names) - 1):
            kept.append(name)
    return kept


def _members(model: nn.Module, group: str, key: str) -> list[nn.Parameter]:
    """The backbone's parameters that a group of `freeze_groups` or `unfreeze_groups` names. Raises UserError with none."""
    found: list[nn.Parameter] = []
    top, late = head(model)[0], set(from_block(model, 0))
    for name, parameter in model.named_parameters():
        module, _, last = name.rpartition(".")
        inside = {
            "norms": "norm" in type(model.get_submodule(module)).__name__.lower(),
            "biases": last == "bias",
            "attention": re.search(ATTENTION, module) is not None,
            "embeddings": name not in late,
            "head": name.startswith(top + "."),
        }
        if inside[group] and (group == "head" or not inside["head"]):
            found.append(parameter)
    if not found:
        raise UserError(f"{key}: {type(model).__name__} has no {group}; leave it out")
    return found


def _keep_frozen_norms(model: nn.Module) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def to_eval(*_: Any) -> None:  # `Trainer` calls model.train() before every step; what is frozen may change between two
        for norm in norms:
            if not any(p.requires_grad for p in norm.parameters()):
                norm.training = False

    if norms:
        model.register_forward_pre_hook(to_eval)


def lora_targets(model: nn.Module, which: str | list[str]) -> list[str]:
    """Full names of the modules that get an adapter: linear layers of the blocks, or their dense convolutions where a block
    has no attention. A list names module name endings. Raises UserError with nothing to target.
    """
    inside = [(f"{b}.{n}", m) for b, block in blocks(model) for n, m in block.named_modules() if n]
    # Depthwise convolutions have one weight a channel and no rank to lower; padded subclasses (timm) break peft's own conv.
    matrices = [n for n, m in inside if isinstance(m, nn.Linear) or (type(m) is nn.Conv2d and m.groups == 1)]
    attention = [n for n in matrices if re.search(ATTENTION, n)]
    if isinstance(which, list):
        chosen = [n for n in matrices if any(n == w or n.endswith("." + w) for w in which)]
    elif which == "all" or not attention:
        chosen = matrices
    else:
        chosen = attention if which == "attention" else [n for n in matrices if n not in attention]
    if not chosen:
        ends = sorted({n.rsplit(".", 1)[-1] for n in matrices})
        have = f"its blocks have {', '.join(ends)}" if ends else "it has no blocks with linear layers or dense convolutions"
        raise UserError(f"lora_target_modules: {which} matches nothing in {type(model).__name__}; {have}")
    return chosen


def _lora(model: nn.Module, keys: AdaptationKeys, head_name: str, base_name: str) -> nn.Module:
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


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    head_learning_rate: float | None,
    layer_decay: float,
    muon: bool = False,
) -> list[dict[str, Any]]:
    """Optimizer groups of the parameters that train: {name, params, lr, weight_decay, muon}; with `muon`, it is true of the
    blocks' matrices.

    Norms, biases and everything else with fewer than two dimensions, position embeddings and tokens take no weight decay.
    With `layer_decay` d, a parameter of block i of n trains at d ** (n - i) of `learning_rate`, what stands before the
    blocks at d ** (n + 1), what stands between two (Swin's and ConvNeXt's downsampling) like the second of them, what stands
    after them and the head at the full rate.
    """
    names = [n for n, _ in blocks(model)]
    head_name = head(model)[0]
    groups: dict[tuple[str, bool, bool], dict[str, Any]] = {}
    last = -1  # parameters are registered in forward order: embeddings, blocks, what comes after them
    for name, parameter in model.named_parameters():
        inside = next((i for i, block in enumerate(names) if name.startswith(block + ".")), None)
        last = last if inside is None else inside
        if inside is None and 0 <= last < len(names) - 1:
            inside = last + 1
        if not parameter.requires_grad:
            continue
        if name.startswith(head_name + "."):
            place, lr = "head", head_learning_rate or learning_rate
        elif inside is not None:
            place, lr = f"block {inside}", learning_rate * layer_decay ** (len(names) - inside)
        elif last < 0:
            place, lr = "embeddings", learning_rate * layer_decay ** (len(names) + 1)
        else:
            place, lr = "after blocks", learning_rate
        plain = parameter.ndim < 2 or re.search(r"position|pos_embed|token", name) is not None
        matrix = muon and not plain and parameter.ndim == 2 and place.startswith("block ")
        title = place + (" (no decay)" if plain else " (muon)" if matrix else "")
        made = {"name": title, "params": [], "lr": lr, "weight_decay": 0.0 if plain else weight_decay, "muon": matrix}
        group = groups.setdefault((place, plain, matrix), made)
        group["params"].append(parameter)
    return list(groups.values())


def learning_rate_scale(keys: AdaptationKeys, batch: int) -> float:
    """What the learning rates of a recipe are multiplied by at a batch of so many images an update, over all processes and
    accumulation: in proportion (Goyal et al. 2017, arXiv 1706.02677) or by the square root (Krizhevsky 2014, arXiv 1404.5997).
    """
    share = batch / keys.scale_learning_rate_base
    return {"none": 1.0, "linear": share, "sqrt": share**0.5}[keys.scale_learning_rate]


def group_table(groups: list[dict[str, Any]]) -> str:
    """What trains, for the log: one line a group with parameters, learning rate and weight decay."""
    lines = [f"{'group':<24}{'parameters':>14}{'learning rate':>16}{'weight decay':>14}"]
    for g in groups:
        count = sum(p.numel() for p in g["params"])
        lines.append(f"{g['name']:<24}{count:>14,}{g['lr']:>16.3g}{g['weight_decay']:>14.3g}")
    return "\n".join(lines)


def save_adapter(model: Any, folder: Path) -> None:
    """peft's folder, with the position embeddings beside the adapter: they were resampled if the image size changed, and a
    base loaded at that size would draw them at random.
    """
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's, all "More information needed"
    positions = {k: v for k, v in model.state_dict().items() if k.endswith(("position_embeddings", "pos_embed"))}
    weights = load_file(folder / "adapter_model.safetensors") | {k: v.cpu().contiguous() for k, v in positions.items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
