"""Muon takes the matrices of the blocks, the fallback the rest; both resume from their state."""

import copy

import torch
from helpers import tiny_models
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hf_cifar.methods.parameter_groups import parameter_groups
from hf_cifar.models.structure import blocks
from hf_cifar.training.muon import MuonWithFallback


def test_muon_takes_the_matrices_of_the_blocks():
    model = tiny_models.build("vit")
    groups = parameter_groups(model, 1e-3, 0.1, layer_decay=0.5, muon=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = [parameter for group in groups if group["muon"] for parameter in group["params"]]
    assert all(p.ndim == 2 and "layer" in names[id(p)] for p in matrices)
    assert len(matrices) == 6 * len(blocks(model))
    assert sum(len(group["params"]) for group in groups) == len(names)
    convolutional = parameter_groups(tiny_models.build("resnet"), 1e-3, 0.1, muon=True)
    assert not any(group["muon"] for group in convolutional)


def layer_and_optimizer():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    groups = [
        {"params": [layer.weight], "lr": 0.1, "weight_decay": 0.0, "muon": True},
        {"params": [layer.bias], "lr": 0.2, "weight_decay": 0.0, "muon": False},
    ]
    return layer, MuonWithFallback(groups, torch.optim.AdamW)


def train(layer, optimizer, schedule, steps):
    for _ in range(steps):
        layer(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def test_both_parts_step_as_alone_and_follow_the_schedule():
    layer, optimizer = layer_and_optimizer()
    start = copy.deepcopy(layer.state_dict())
    weight, bias = (nn.Parameter(start[name].clone()) for name in ("weight", "bias"))
    muon = torch.optim.Muon([weight], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([bias], lr=0.2, weight_decay=0.0)
    layer(torch.ones(2, 6)).square().sum().backward()
    weight.grad, bias.grad = layer.weight.grad.clone(), layer.bias.grad.clone()
    muon.step()
    adamw.step()
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    layer.zero_grad()
    train(layer, optimizer, schedule, 1)
    assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)
    train(layer, optimizer, schedule, 1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.05]


def test_both_parts_resume_from_their_state():
    layer, optimizer = layer_and_optimizer()
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    train(layer, optimizer, schedule, 2)
    states = [copy.deepcopy(part.state_dict()) for part in (layer, optimizer, schedule)]
    train(layer, optimizer, schedule, 2)

    resumed, optimizer = layer_and_optimizer()
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    for part, state in zip((resumed, optimizer, schedule), states, strict=True):
        part.load_state_dict(state)
    train(resumed, optimizer, schedule, 2)
    assert torch.equal(resumed.weight, layer.weight) and torch.equal(resumed.bias, layer.bias)
