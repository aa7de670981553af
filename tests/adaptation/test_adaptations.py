"""The adaptations: what they change, the statistics that they compute, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_cifar.adaptation.alignment import moments
from hf_cifar.adaptation.base import Settings
from hf_cifar.adaptation.batch_norm import BatchNormStatistics, adapt_statistics
from hf_cifar.adaptation.entropy import entropy
from hf_cifar.adaptation.guard import shift_p_value
from hf_cifar.adaptation.norms import batch_norms, norms
from hf_cifar.adaptation.table import ADAPTATIONS
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier

TRAINED = ("tent", "sar", "eata", "coral")


def model_of(folder: Path) -> Any:
    return load_classifier(str(folder)).model


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=random) * 0.7 + 0.4


def stepped(name: str, model: Any, rate: float = 1e-2) -> Any:
    adaptation = ADAPTATIONS[name](model, Settings(learning_rate=rate))
    adaptation.prepare(lambda: [pixels(24, seed=9)])
    for seed in range(3):
        adaptation.step(pixels(12, seed) * 3)
    return adaptation


@pytest.mark.parametrize("family", ["resnet", "vit", "convnext", "timm"])
@pytest.mark.parametrize("name", ["tent", "coral"])
def test_only_scales_and_shifts_of_norms_change(
    name: str, family: str, tiny: Callable[[str], Path]
) -> None:
    model = model_of(tiny(family))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    parts = {
        id(parameter) for module in norms(model) for parameter in module.parameters(recurse=False)
    }
    allowed = {key for key, parameter in model.named_parameters() if id(parameter) in parts}
    stepped(name, model)
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed and changed <= allowed
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training and not any(m.training for m in model.modules())


@pytest.mark.parametrize("name", TRAINED)
def test_reset_is_exact_and_a_second_start_gives_the_same_bits(
    name: str, tiny: Callable[[str], Path]
) -> None:
    model = model_of(tiny("resnet"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adaptation = stepped(name, model)
    adaptation.finish(lambda: [pixels(12)])
    first = adaptation.snapshot()
    adaptation.reset()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for seed in range(3):
        adaptation.step(pixels(12, seed) * 3)
    adaptation.finish(lambda: [pixels(12)])
    assert all(torch.equal(value, first[key]) for key, value in model.state_dict().items())


def test_tent_lowers_the_entropy_and_answers_before_it_learns(
    tiny: Callable[[str], Path],
) -> None:
    model = model_of(tiny("resnet"))
    adaptation = ADAPTATIONS["tent"](model, Settings(learning_rate=1e-2))
    images = pixels(16)
    values = [float(entropy(adaptation.step(images)).mean()) for _ in range(6)]
    assert values[-1] < values[0]
    fresh = BatchNormStatistics(model_of(tiny("resnet")), Settings(prior=1e-12))
    assert float(entropy(fresh.step(images)).mean()) == pytest.approx(values[0], abs=1e-5)


def test_coral_brings_the_moments_nearer(tiny: Callable[[str], Path]) -> None:
    from hf_cifar.adaptation.alignment import features_and_logits
    from hf_cifar.adaptation.norms import batch_statistics

    model = model_of(tiny("resnet"))
    adaptation: Any = ADAPTATIONS["coral"](model, Settings(learning_rate=1e-2))
    adaptation.prepare(lambda: [pixels(32, seed=5)])
    target = pixels(32, seed=6) * 4

    def distance() -> float:
        with torch.no_grad(), batch_statistics(model):
            mean, covariance = moments(features_and_logits(model, target)[0])
        first = (mean - adaptation.mean).square().sum()
        return float(first + (covariance - adaptation.covariance).square().sum() / 4)

    before = distance()
    for _ in range(8):
        adaptation.step(target)
    assert distance() < before


def test_statistics_are_those_of_all_images_and_the_source_counts_for_the_prior(
    tiny: Callable[[str], Path],
) -> None:
    model = model_of(tiny("resnet"))
    first = batch_norms(model)[0]
    held = [part.clone().double() for part in (first.running_mean, first.running_var)]
    inputs: list[torch.Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    adapt_statistics(model, lambda: [pixels(10, 1), pixels(6, 2)], prior=4.0)
    hook.remove()
    values = torch.cat(inputs).double().transpose(0, 1).flatten(1)
    target = values.mean(1), values.var(1, correction=0)
    for new, source, of_target in zip(
        (first.running_mean, first.running_var), held, target, strict=True
    ):
        expected = 4 / 20 * source + 16 / 20 * of_target
        assert torch.allclose(new.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_step_blends_for_its_batch_only(tiny: Callable[[str], Path]) -> None:
    model = model_of(tiny("resnet"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = pixels(8) * 2
    with torch.no_grad():
        plain = model(pixel_values=images).logits
    trusted = BatchNormStatistics(model, Settings(prior=1e12)).step(images)
    assert torch.allclose(trusted, plain, atol=1e-4)
    adapted = BatchNormStatistics(model, Settings(prior=1.0)).step(images)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_layer_norms_have_no_statistics_to_adapt(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="no batch norms; use tent"):
        ADAPTATIONS["batch_norm"](model_of(tiny("vit")), Settings())


def test_a_model_without_norms_is_refused() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="no normalisation layers"):
        ADAPTATIONS["tent"](plain, Settings())


def test_the_two_sample_test_tells_a_shift_from_chance() -> None:
    random = np.random.default_rng(0)
    source = random.normal(size=(400, 50))
    same = [shift_p_value(source, random.normal(size=(300, 50))) for _ in range(20)]
    assert sum(value < 0.01 for value in same) <= 1
    moved = random.normal(size=(300, 50))
    moved[:, 7] += 0.6
    assert shift_p_value(source, moved) < 1e-6
