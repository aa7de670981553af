"""Heat maps: the layer of each family, places that stay in place, and what a map is hot over."""

from __future__ import annotations

import PIL.Image
import pytest
import torch
from helpers import tiny_models
from helpers.tiny_models import FAMILIES, SIZE
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Dinov2WithRegistersConfig,
    TimmWrapperConfig,
)

from hf_cifar.errors import UserError
from hf_cifar.evaluation.heat_map_layer import choose_layer
from hf_cifar.evaluation.heat_maps import HeatMaps, overlay, seen_picture

pytest.importorskip("pytorch_grad_cam")
REGISTERS = Dinov2WithRegistersConfig(
    **tiny_models.TRANSFORMER | {"patch_size": 16}, mlp_ratio=2, num_register_tokens=5
)
TIMM_SWIN = TimmWrapperConfig(
    architecture="swin_tiny_patch4_window7_224",
    model_args={"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 1, 1)},
)
FORMS = {
    "convnext": "channels_first",
    "resnet": "channels_first",
    "efficientnet": "channels_first",
    "timm": "channels_first",
}


def other_model(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_place_of_the_picture_is_the_same_place_of_the_map(family):
    """What changes at a corner of the picture changes most in that quarter of the layer's outputs:
    no token too many is dropped, and rows are not taken for columns.
    """
    model = tiny_models.build(family)
    layer = choose_layer(model, SIZE)
    assert layer.form == FORMS.get(family, "tokens")
    assert_places_match(model, SIZE)


@pytest.mark.parametrize(
    ("config", "side", "form"),
    [
        # 2 x 2 patches after 6 other tokens, which are ten: more than 3 x 3
        (REGISTERS, 32, "tokens"),
        (TIMM_SWIN, 64, "channels_last"),
    ],
)
def test_places_of_other_architectures(config, side, form):
    model = other_model(config)
    assert choose_layer(model, side).form == form
    assert_places_match(model, side)


def test_a_block_that_folds_patches_into_the_batch_is_no_map():
    model = other_model(TimmWrapperConfig(architecture="mobilevit_xxs"))
    assert choose_layer(model, 64).form == "channels_first"


def assert_places_match(model, side: int) -> None:
    layer = choose_layer(model, side)
    heat_maps = HeatMaps(model, layer)
    outputs: list[torch.Tensor] = []
    hook = model.get_submodule(layer.name).register_forward_hook(
        lambda _, __, output: outputs.append(heat_maps.to_maps(output))
    )
    rows, columns = layer.grid
    pictures = torch.zeros(4, 3, side, side)
    eighth = side // 8
    # The first three pictures differ from the last, which is grey, in one corner each.
    corners = [(slice(0, eighth), slice(-eighth, None)), (slice(-eighth, None), slice(0, eighth))]
    corners.append((slice(-eighth, None), slice(-eighth, None)))
    for picture, (high, wide) in zip(pictures, corners, strict=False):
        colours = torch.linspace(-2, 2, 3 * eighth * eighth)
        picture[:, high, wide] = colours.view(3, eighth, eighth)
    with torch.no_grad():
        model(pixel_values=pictures)
    hook.remove()
    maps = outputs[0]
    assert maps.shape[0] == 4 and maps.shape[2:] == (rows, columns)
    changes = (maps[:3] - maps[3]).square().sum(1)
    places = [divmod(int(change.argmax()), columns) for change in changes]
    quarters = [(row >= rows / 2, column >= columns / 2) for row, column in places]
    assert quarters == [(False, True), (True, False), (True, True)]


def test_the_map_is_hot_where_the_answer_comes_from():
    """A model is fitted to squares of two colours that lie anywhere on noise."""
    model = tiny_models.build("resnet", labels=2).train()
    generator = torch.Generator().manual_seed(0)

    def batch(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return pictures, labels, and where the square is."""
        pictures = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
        labels = torch.randint(0, 2, (count,), generator=generator)
        places = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
        corners = 8 * torch.randint(0, 4, (count, 2), generator=generator)
        for number, (top, left) in enumerate(corners.tolist()):
            places[number, top : top + 8, left : left + 8] = True
            pictures[number, 2 * int(labels[number]), places[number]] += 3
        return pictures, labels, places

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        pictures, labels, _ = batch(16)
        loss = model(pixel_values=pictures, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    heat_maps = HeatMaps(model, choose_layer(model, SIZE))
    pictures, labels, places = batch(20)
    before = model(pixel_values=pictures).logits
    assert (before.argmax(1) == labels).all()
    inside, outside = [], []
    for picture, label, place in zip(pictures, labels.tolist(), places, strict=True):
        heat = torch.from_numpy(heat_maps(picture[None], label))
        assert heat.shape == (SIZE, SIZE) and heat.min() >= 0 and heat.max() <= 1
        inside.append(float(heat[place].mean()))
        outside.append(float(heat[~place].mean()))
    assert sum(inside) > 2 * sum(outside), (inside, outside)
    assert torch.equal(model(pixel_values=pictures).logits, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_blocks_has_no_maps():
    model = other_model(TimmWrapperConfig(architecture="test_efficientnet"))
    model.timm_model.blocks = torch.nn.Identity()
    model.timm_model.conv_head = torch.nn.Conv2d(24, 256, 1)
    with pytest.raises(UserError, match="leave heat maps out"):
        choose_layer(model, SIZE)


@pytest.mark.parametrize("family", ["vit", "dinov2", "convnext", "efficientnet"])
def test_what_a_model_sees_is_what_its_processor_normalises(family, tiny):
    from hf_cifar.evaluation.classifier import load_classifier

    picture = PIL.Image.effect_mandelbrot((60, 45), (-2, -1, 1, 1), 30).convert("RGB")
    own = load_classifier(str(tiny(family))).transforms.processor
    for processor in (own, AutoImageProcessor.from_pretrained(tiny(family))):
        seen = seen_picture(processor, picture)
        assert seen.shape == (SIZE, SIZE, 3)
        inputs = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        values, pixels = inputs.permute(1, 2, 0), torch.from_numpy(seen).float()
        for channel in range(3):  # normalising is a line through the grey levels
            pair = torch.stack([values[..., channel].ravel(), pixels[..., channel].ravel()])
            assert torch.corrcoef(pair)[0, 1] > 0.9999
    assert overlay(seen, torch.zeros(SIZE, SIZE).numpy()).shape == (448, 448, 3)
