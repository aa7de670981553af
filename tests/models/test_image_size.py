"""Another image size is baked into the model and stands in its configs."""

import shutil

import pytest
import torch
from helpers import tiny_models
from helpers.backbones import load, project_logits, randomise_head, save

from hf_cifar.errors import UserError
from hf_cifar.models.image_size import set_image_size


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_another_size_is_baked_in_and_stands_in_the_configs(family, tiny, tmp_path):
    backbone = load(tiny(family), image_size=48)
    randomise_head(backbone.model)
    again = load(save(backbone, tmp_path), head_init="pretrained")  # the folder says the size
    assert again.image_size == 48
    assert dict(again.processor.size) == {"height": 48, "width": 48}
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(
        project_logits(again, images), project_logits(backbone, images), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_position_embeddings_are_resampled_as_the_library_does(family, tiny):
    native, larger = load(tiny(family)), load(tiny(family), image_size=64)
    randomise_head(native.model)
    randomise_head(larger.model)
    pixels = torch.randn(2, 3, 64, 64)
    flag = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        theirs = native.model(pixel_values=pixels, **flag).logits
        ours = larger.model(pixel_values=pixels).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert larger.model.config.image_size == 64


def test_the_same_size_changes_no_weight(tiny):
    backbone = load(tiny("vit"), head_init="default")
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    set_image_size(backbone.model, 32)
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_convolutional_networks_size_is_what_its_processor_makes(tiny, tmp_path):
    """ConvNeXt's config says 224 whatever it was trained at."""
    folder = shutil.copytree(tiny("convnext"), tmp_path / "net")
    tiny_models.edit_config(folder, image_size=224)
    assert load(folder).image_size == 32


@pytest.mark.parametrize(
    ("family", "patch", "remedy"), [("vit", 8, 32), ("dinov2", 8, 32), ("timm_vit", 16, 32)]
)
def test_a_size_that_is_no_multiple_of_the_patch(family, patch, remedy, tiny):
    with pytest.raises(UserError) as caught:
        load(tiny(family), image_size=33)
    message = str(caught.value)
    assert message.startswith("image_size: 33 is no multiple of")
    assert message.endswith(f"patch of {patch}; use {remedy}")
