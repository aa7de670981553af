"""Every family's saved folder answers in `pipeline` what the project's evaluation answers."""

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import tiny_models
from helpers.backbones import load, pipeline_logits, project_logits, randomise_head, save
from helpers.runs import LABELS
from transformers import AutoImageProcessor

from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.load import load_split
from hf_cifar.models.processors import evaluation_processor
from hf_cifar.recipe.recipe import Recipe

QUICK = ("vit", "resnet", "timm")


@pytest.fixture(scope="module")
def test_split():
    return load_split(Recipe(dataset_name="sample"), "test")


@pytest.fixture(scope="module")
def images(test_split):
    """uint8 [40, 3, 32, 32], four of each class."""
    rows = np.concatenate([np.flatnonzero(test_split.labels == c)[:4] for c in range(10)])
    return test_split.images.batch(rows)


@pytest.mark.parametrize("size", [None, 64])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_pipeline_gives_the_logits_of_our_evaluation(family, size, tiny, images, tmp_path):
    backbone = load(tiny(family), image_size=size)
    assert backbone.image_size == (size or tiny_models.SIZE)
    randomise_head(backbone.model)
    ours = project_logits(backbone, images)
    assert ours.std(0).min() > 1e-3, "images differ, or nothing is proven"
    logits, labels = pipeline_logits(save(backbone, tmp_path), images)
    torch.testing.assert_close(logits, ours, atol=1e-4, rtol=0)
    assert labels == [LABELS[i] for i in ours.argmax(1)]


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in QUICK else pytest.mark.slow) for f in tiny_models.FAMILIES],
)
def test_every_sample_test_image_has_the_same_top_1(family, tiny, test_split, tmp_path):
    backbone = load(tiny(family))
    randomise_head(backbone.model)
    everything = test_split.images.batch(np.arange(1000))
    ours = torch.cat([project_logits(backbone, part) for part in everything.split(100)])
    logits, labels = pipeline_logits(save(backbone, tmp_path), everything, batch_size=100)
    torch.testing.assert_close(logits, ours, atol=1e-4, rtol=0)
    assert labels == [LABELS[i] for i in ours.argmax(1)]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_pictures_of_any_shape_go_the_same_way(family, tiny, tmp_path):
    backbone = load(tiny(family))
    randomise_head(backbone.model)
    rng = np.random.default_rng(0)
    pictures = [
        torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        for height, width in ((50, 80), (99, 33))
    ]
    transforms = Transforms(backbone.processor, backbone.image_size)
    with torch.inference_mode():
        shrunk = transforms.normalize(torch.stack([transforms.shrink(p) for p in pictures]))
        ours = backbone.model(pixel_values=shrunk).logits
    logits, _ = pipeline_logits(save(backbone, tmp_path), pictures)
    torch.testing.assert_close(logits, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("center_crop", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_whole_picture_is_seen_unless_the_centre_is_asked_for(family, center_crop, tiny):
    """Bright pixels in the corner show in the whole picture, and not in the centre crop."""
    plain = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    corner = plain.clone()
    corner[..., :2, :2] = 255
    processor = load(tiny(family), center_crop=center_crop).processor
    first, second = (
        processor(images=x, return_tensors="pt")["pixel_values"] for x in (corner, plain)
    )
    assert first.shape == (1, 3, 32, 32)
    assert bool((first - second).abs().max() > 0.1) != center_crop


@pytest.mark.parametrize("center_crop", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_colours_are_what_the_familys_own_processor_makes(family, center_crop, tiny):
    """On a picture of one colour, size and crop do not matter."""
    colour = torch.tensor([30, 120, 250], dtype=torch.uint8)
    image = colour[None, :, None, None].expand(1, 3, 40, 40)
    ours = load(tiny(family), center_crop=center_crop).processor
    theirs = AutoImageProcessor.from_pretrained(tiny(family))
    is_timm = family.startswith("timm")
    picture = PIL.Image.fromarray(image[0].permute(1, 2, 0).numpy()) if is_timm else image
    expected = theirs(images=picture, return_tensors="pt")["pixel_values"][..., 0, 0]
    pixels = ours(images=image, return_tensors="pt")["pixel_values"][..., 0, 0]
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rescale_offset", "factor"), [(True, 1 / 127.5), (False, 1 / 255)])
@pytest.mark.parametrize("include_top", [True, False])
def test_efficientnets_odd_normalisations_are_kept(include_top, rescale_offset, factor):
    processor = tiny_models.processor("efficientnet")
    changes = {"include_top": include_top, "rescale_offset": rescale_offset}
    odd = type(processor)(**{**processor.to_dict(), **changes, "rescale_factor": factor})
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    pixels = evaluation_processor(odd, 32, False)(images=images, return_tensors="pt")
    expected = odd(images=images, return_tensors="pt")
    torch.testing.assert_close(pixels["pixel_values"], expected["pixel_values"], atol=1e-4, rtol=0)
