"""Classifier and blocks are found in every family, by looking at the model."""

import pytest
import torch
from helpers import tiny_models
from helpers.backbones import load
from transformers import AutoModel, ViTForMaskedImageModeling

from hf_cifar.errors import UserError
from hf_cifar.models.structure import blocks, describe, head, head_name


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_blocks_are_found_in_forward_order(family, tiny):
    model = load(tiny(family)).model.eval()
    names = [name for name, _ in blocks(model)]
    assert len(names) == tiny_models.BLOCKS[family]
    called = []
    for name, module in blocks(model):
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.inference_mode():
        model(pixel_values=torch.zeros(1, 3, 32, 32))
    assert called == names
    assert not any(head(model)[0].startswith(name) for name in names)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_head_is_what_gives_the_logits(family, tiny):
    model = load(tiny(family)).model.eval()
    name, linear = head(model)
    assert name == head_name(model) and model.get_submodule(name) is linear
    outputs = []
    linear.register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.inference_mode():
        logits = model(pixel_values=torch.ones(1, 3, 32, 32)).logits
    assert torch.equal(outputs[0], logits)


def test_a_model_without_a_classifier_has_no_head():
    config = tiny_models.config("vit")
    config.num_labels = 10
    for model in (AutoModel.from_config(config), ViTForMaskedImageModeling(config)):
        assert head_name(model) is None
        with pytest.raises(UserError, match="vit: has no linear classifier"):
            head(model)
        assert len(blocks(model)) == 3


def test_one_line_describes_a_model(tiny):
    assert describe(load(tiny("vit")).model) == (
        "ViTForImageClassification: 0.0 M parameters, 3 blocks"
    )
