"""Dropout and stochastic depth reach the model, or are refused where a family has none."""

import pytest
import torch
from helpers import tiny_models
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.models.load import load_backbone
from hf_cifar.models.structure import head
from hf_cifar.recipe.fields import ModelKeys

FAMILIES = {
    "dropout": {"vit", "deit", "dinov2", "swin", "efficientnet", "timm", "timm_vit"},
    "drop_path_rate": {"dinov2", "swin", "convnext", "efficientnet", "timm", "timm_vit"},
}


def head_inputs(model, pixels, passes):
    """Return what the head gets in each of so many forward passes."""
    inputs = []
    hook = head(model)[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        for _ in range(passes):
            model(pixel_values=pixels)
    hook.remove()
    return inputs


@pytest.mark.parametrize("key", FAMILIES)
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_dropout_and_drop_path_reach_the_model_or_are_refused(family, key, tiny):
    keys = ModelKeys(model_name_or_path=str(tiny(family)), head_init="default", **{key: 0.5})
    labels = list("abcdefghij")
    if family not in FAMILIES[key]:
        with pytest.raises(UserError, match=f"{key}: {family} has none"):
            load_backbone(keys, labels)
        return
    model = load_backbone(keys, labels).model
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    assert torch.equal(*head_inputs(model.eval(), pixels, 2))
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    if (family, key) == ("timm", "drop_path_rate"):
        # Its residual branches start at zero, so its outputs do not show what is dropped.
        assert any(m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath")
    else:
        assert not torch.equal(*head_inputs(model, pixels, 2))
