"""EATA: which images teach, how much each weighs, and what is held near the source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hf_cifar.adaptation.base import Settings
from hf_cifar.adaptation.eata import Eata, redundancy_margin
from hf_cifar.adaptation.entropy import entropy
from hf_cifar.adaptation.norms import batch_statistics, norm_parameters
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.models.structure import head


def pixels(count: int, seed: int) -> torch.Tensor:
    """Noise in many colours."""
    random = torch.Generator().manual_seed(seed)
    colours = torch.randn(count, 3, 1, 1, generator=random) * 2
    return torch.randn(count, 3, 32, 32, generator=random) + colours


@pytest.fixture
def model(tiny: Callable[[str], Path]) -> Any:
    """A model that is surer of some images than the margin, and less sure of others."""
    model = load_classifier(str(tiny("resnet"))).model
    _, linear = head(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * 0.3)
    return model


def logits_of(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), batch_statistics(model):
        return model(pixel_values=images).logits


def test_the_margin_is_the_papers_for_10_and_for_1000_classes() -> None:
    assert redundancy_margin(10) == pytest.approx(0.4)
    assert redundancy_margin(1000) == pytest.approx(0.05)
    for classes in (2, 4, 10, 100, 1000):  # a sure answer and an even mean do not look alike
        assert 1 / math.sqrt(classes) < redundancy_margin(classes) <= 1


def test_a_step_is_the_papers(model: Any) -> None:
    """The parameters after one step of SGD follow from the loss as the paper writes it."""
    images, seen = pixels(16, 1), torch.full((10,), 0.1)
    adaptation = Eata(model, Settings(learning_rate=1e-2))
    adaptation.mean_answer = seen.clone()
    before = [parameter.detach().clone() for parameter in adaptation.parameters]
    with torch.enable_grad(), batch_statistics(model):
        for parameter in adaptation.parameters:
            parameter.requires_grad_(True)
        logits = model(pixel_values=images).logits
        values, margin = entropy(logits), 0.4 * math.log(10)
        answers = logits.detach().softmax(1)
        alike = F.cosine_similarity(answers, seen[None], dim=1)
        chosen = (values.detach() < margin) & (alike < 0.4)
        assert 0 < chosen.sum() < 16  # some are left out
        weights = 1 / torch.exp(values.detach()[chosen] - margin)
        loss = (weights * values[chosen]).mean()
        gradients = torch.autograd.grad(loss, adaptation.parameters, allow_unused=True)
    adaptation.step(images)
    for parameter, start, gradient in zip(adaptation.parameters, before, gradients, strict=True):
        expected = start if gradient is None else start - 1e-2 * gradient
        torch.testing.assert_close(parameter.detach(), expected)
    expected_mean = 0.9 * seen + 0.1 * answers[chosen].mean(0)
    torch.testing.assert_close(adaptation.mean_answer, expected_mean)


def test_images_like_those_before_and_unsure_ones_teach_nothing(model: Any) -> None:
    adaptation, images = Eata(model, Settings()), pixels(16, 2)
    logits = logits_of(model, images)
    sure = entropy(logits) < 0.4 * math.log(10)
    assert 0 < sure.sum() < 16
    for mean in logits[sure].softmax(1):
        adaptation.mean_answer = mean  # like the sure images of this class
        alike = F.cosine_similarity(logits.softmax(1), mean[None], dim=1) >= 0.4
        before = adaptation.snapshot()
        adaptation.step(images)
        changed = any(not torch.equal(v, before[k]) for k, v in adaptation.snapshot().items())
        assert changed == bool((sure & ~alike).any())
        adaptation.reset()
    _, linear = head(model)
    with torch.no_grad():
        linear.weight.mul_(1e-3)
    before = adaptation.snapshot()
    adaptation.step(images)  # every answer is unsure
    assert adaptation.mean_answer is None
    assert all(torch.equal(v, before[k]) for k, v in adaptation.snapshot().items())


def test_fisher_information_is_the_mean_squared_gradient(model: Any) -> None:
    sets = [pixels(12, 5), pixels(12, 6)]
    adaptation = Eata(model, Settings())

    def source() -> Iterator[torch.Tensor]:
        yield from sets

    before = adaptation.snapshot()
    adaptation.prepare(source)
    assert all(torch.equal(v, before[k]) for k, v in adaptation.snapshot().items())
    expected = [torch.zeros_like(p) for p in adaptation.parameters]
    parameters = norm_parameters(model)
    for images in sets:
        with torch.enable_grad(), batch_statistics(model):
            for parameter in parameters:
                parameter.requires_grad_(True)
            logits = model(pixel_values=images).logits
            loss = F.cross_entropy(logits, logits.argmax(1))
            for total, gradient in zip(
                expected, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
            ):
                if gradient is not None:
                    total += gradient**2 / 2
    for ours, theirs in zip(adaptation.fisher, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        assert float(adaptation.forgetting()) == 0
    with torch.no_grad():
        adaptation.parameters[0] += 0.5
        penalty = 0.25 * float(adaptation.fisher[0].sum())
        assert penalty > 0 and float(adaptation.forgetting()) == pytest.approx(penalty)


def test_what_matters_on_the_source_is_held(model: Any) -> None:
    moved = []
    for information in (0.0, 50.0):
        adaptation = Eata(model, Settings(learning_rate=1e-3))
        adaptation.fisher = [torch.full_like(p, information) for p in adaptation.parameters]
        for seed in range(6):
            adaptation.mean_answer = None  # every sure image teaches
            adaptation.step(pixels(16, seed))
        moves = [
            (now - start).square().sum()
            for now, start in zip(adaptation.parameters, adaptation.anchor, strict=True)
        ]
        moved.append(float(torch.stack(moves).sum().detach()))
        adaptation.reset()
        assert adaptation.mean_answer is None
    assert 0 < moved[1] < moved[0]


def test_only_norms_change_and_reset_is_exact(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    allowed = {id(parameter) for parameter in norm_parameters(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in allowed}
    adaptation, ends = Eata(model, Settings()), []
    adaptation.prepare(lambda: [pixels(12, 5)])
    for _ in range(2):
        for seed in range(3):
            adaptation.step(pixels(16, seed))
        ends.append(adaptation.snapshot())
        changed = {name for name, value in ends[-1].items() if not torch.equal(value, before[name])}
        assert changed and changed <= names
        adaptation.reset()
        assert all(torch.equal(value, before[k]) for k, value in model.state_dict().items())
    assert all(torch.equal(value, ends[0][name]) for name, value in ends[1].items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
