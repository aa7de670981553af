"""FLOPs of a forward pass against the formula, on tensors and on fake ones."""

import torch
from helpers import tiny_models
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import ViTForImageClassification

from hf_cifar.models.flops import forward_flops


def test_every_product_of_a_transformer_is_counted():
    model = ViTForImageClassification(tiny_models.config("vit")).train()
    patches, width, hidden, layers, labels = 16, 32, 64, 3, 2
    tokens = patches + 1
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    products = patches * 3 * 8 * 8 * width + layers * block + width * labels
    assert forward_flops(model, 32, torch.device("cpu")) == 2 * products
    assert model.training
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert forward_flops(model, 32, torch.device("cpu")) == 2 * products
