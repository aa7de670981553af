"""Where LoRA's adapters lie, and that adapter and merged weights are the same model."""

import copy
import re

import pytest
import torch
from helpers import tiny_models
from helpers.adapted_models import load_model, prepare, train_steps
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageClassification

from hf_cifar.errors import UserError
from hf_cifar.methods.lora import lora_targets
from hf_cifar.models.structure import blocks

WITH_ATTENTION = ("vit", "deit", "dinov2", "swin", "timm_vit")


@pytest.mark.parametrize("target", ["attention", "mlp", "all"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_targets_lie_in_every_block_and_are_of_the_kind_asked_for(family, target, tiny):
    model = load_model(tiny(family))
    targets = lora_targets(model, target)
    inside = [f"{name}." for name, _ in blocks(model)]
    assert all(any(name.startswith(block) for name in targets) for block in inside)
    assert all(name.startswith(tuple(inside)) for name in targets)
    modules = [model.get_submodule(name) for name in targets]
    kinds = {type(module) for module in modules}
    if family in WITH_ATTENTION:
        assert kinds == {nn.Linear}
        attention = [bool(re.search("att", name.split(".", 2)[-1])) for name in targets]
        expected = {"attention": {True}, "mlp": {False}, "all": {True, False}}
        assert set(attention) == expected[target]
    else:
        assert kinds <= {nn.Conv2d, nn.Linear}
        assert (nn.Conv2d in kinds) == (family != "convnext")
        assert all(getattr(module, "groups", 1) == 1 for module in modules)


def test_targets_by_name_and_a_name_that_no_module_has(tiny):
    model = load_model(tiny("vit"))
    assert len(lora_targets(model, ["q_proj", "fc1"])) == 6
    with pytest.raises(UserError) as caught:
        lora_targets(model, ["query"])
    message = str(caught.value)
    assert "query" in message and "q_proj" in message and "\n" not in message


class Depthwise(nn.Module):
    """Blocks of depthwise convolutions alone."""

    def __init__(self):
        super().__init__()
        stages = [[nn.Conv2d(8, 8, 3, groups=8) for _ in range(2)] for _ in range(2)]
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)


def test_a_model_without_targets_is_refused():
    with pytest.raises(UserError, match="no blocks with linear layers or dense convolutions"):
        lora_targets(Depthwise(), "attention")


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_adapter_on_the_base_and_merged_weights_agree(family, tiny, tmp_path):
    adapted = prepare(load_model(tiny(family)), "lora", lora_target_modules="all")
    train_steps(adapted).eval()
    pixels = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        expected = adapted(pixel_values=pixels).logits
    assert expected.std() > 0.01
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(load_model(tiny(family)), tmp_path)
    assert loaded.peft_config["default"].base_model_name_or_path == "hub/base"
    # The checkpoint itself, loaded by transformers alone.
    base = AutoModelForImageClassification.from_pretrained(tiny(family))
    on_base = PeftModel.from_pretrained(base, tmp_path).eval()
    merged = copy.deepcopy(adapted).merge_and_unload().eval()
    with torch.inference_mode():
        for model in (on_base, merged):
            answer = model(pixel_values=pixels).logits
            torch.testing.assert_close(answer, expected, atol=1e-4, rtol=0)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert set(merged.state_dict()) == set(load_model(tiny(family)).state_dict())
