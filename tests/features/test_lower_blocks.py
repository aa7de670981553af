"""A model with its frozen lower blocks left out gives the same bits from a hidden state, or says
why it can't.
"""

import pytest
import torch
from helpers import tiny_models
from helpers.adapted_models import prepare
from torch import nn

from hf_cifar.features.lower_blocks import CannotCache, FrozenLowerBlocks
from hf_cifar.models.structure import blocks


def partial_model(family):
    model = tiny_models.build(family)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # Swin's own config has stochastic depth
    return prepare(model, "partial")


def pictures(count, channels_last=False):
    generator = torch.Generator().manual_seed(9)
    pixels = torch.randn(count, 3, tiny_models.SIZE, tiny_models.SIZE, generator=generator)
    return pixels.contiguous(memory_format=torch.channels_last) if channels_last else pixels


def own_forward(model):
    """Return whether the `forward` of some module was replaced."""
    return any("forward" in vars(module) for module in model.modules())


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_gives_the_same_bits_from_a_hidden_state(family, bf16):
    model = partial_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    autocast, channels_last = torch.bfloat16 if bf16 else None, bf16
    lower = FrozenLowerBlocks(
        model, tiny_models.SIZE, autocast=autocast, channels_last=channels_last
    )
    assert lower.name == blocks(model)[-1][0]
    pixels = pictures(5, channels_last)
    ran: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))

    def answer(**inputs):
        ran.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(**inputs).logits
        return logits, torch.autograd.grad(logits.float().square().sum(), trained(model))

    expected, gradients = answer(pixel_values=pixels)
    below = tuple(f"{name}." for name, _ in blocks(model)[:-1])
    assert any(name.startswith(below) for name in ran)
    hidden = lower.unpack(torch.from_numpy(lower.pack(lower.compute(pixels))))
    lower.install()
    logits, other_gradients = answer(hidden=hidden)
    assert not any(name.startswith(below) for name in ran)  # nothing inside the frozen blocks ran
    assert torch.equal(expected, logits) and expected.std() > 0
    assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))
    assert torch.equal(answer(pixel_values=pixels)[0], expected)  # as before, for images
    lower.remove()
    assert torch.equal(answer(pixel_values=pixels)[0], expected) and not own_forward(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_probe_leaves_no_trace():
    model = partial_model("resnet").train()
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FrozenLowerBlocks(model, tiny_models.SIZE, autocast=None, channels_last=False)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    # The state holds the batch norms' statistics, too.
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks_with_kwargs for module in model.modules())


def let_train(model, part):
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.requires_grad_(True)


def add_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5


class LooksAtPixels(nn.Module):
    """A last norm that reads the pixels again, past the blocks."""

    def __init__(self, model):
        super().__init__()
        self.norm, self.pixels = model.vit.layernorm, []
        model.register_forward_pre_hook(
            lambda _, args, kwargs: self.pixels.append(kwargs["pixel_values"]), with_kwargs=True
        )

    def forward(self, x):
        return self.norm(x) + self.pixels.pop().mean((1, 2, 3))[:, None, None]


def look_at_pixels(model):
    model.vit.layernorm = LooksAtPixels(model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add_dropout, "random in training"),
        (lambda model: let_train(model, "norm"), "the first block trains"),
        (
            lambda model: let_train(model, "position_embeddings"),
            "position_embeddings trains and comes before",
        ),
        (lambda model: model.requires_grad_(True), "the first block trains"),
        (look_at_pixels, "not the same to the bit"),
    ],
)
def test_a_model_whose_lower_blocks_must_run_is_refused_with_the_reason(change, reason):
    model = partial_model("vit")
    change(model)
    with pytest.raises(CannotCache, match=reason):
        FrozenLowerBlocks(model, tiny_models.SIZE, autocast=None, channels_last=False)
    assert not own_forward(model)
    assert model(pixel_values=pictures(2)).logits.shape == (2, 10)


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_model_that_the_trainer_compiles_and_checkpoints(checkpointing):
    model = partial_model("vit").train()
    lower = FrozenLowerBlocks(model, tiny_models.SIZE, autocast=None, channels_last=False)
    pixels = pictures(4)
    hidden = lower.compute(pixels)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lower.install()
    compiled = torch.compile(model, backend="eager")

    def answer(**inputs):
        logits = compiled(**inputs).logits
        return logits, *torch.autograd.grad(logits.square().sum(), trained(model))

    pairs = [
        (answer(pixel_values=pixels), answer(hidden=hidden)),
        (answer(pixel_values=pixels[:3]), answer(hidden=hidden[:3])),
    ]
    for from_pixels, from_hidden in pairs:
        for a, b in zip(from_pixels, from_hidden, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    logits = pairs[0][0][0]
    assert logits.isfinite().all() and logits.std() > 1e-3
