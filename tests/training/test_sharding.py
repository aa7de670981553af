"""Shards over two gloo processes: blocks are wrapped, one plain model comes out, and a sharded
checkpoint resumes to the same bits.

accelerate has no FSDP on a CPU, so torch's `fully_shard` and distributed checkpoint stand in for
its calls of them.
"""

import PIL.Image
import pytest
import torch
from helpers import launching, tiny_models
from helpers.sharded_training import STEPS, build, make_optimizer, train_step
from transformers import AutoModelForImageClassification, pipeline

from hf_cifar.training.sharding import empty_copy, wrap_classes


def test_a_block_is_gathered_at_a_time():
    assert wrap_classes(tiny_models.build("vit")) == ["ViTLayer"]
    assert wrap_classes(tiny_models.build("dinov2")) == ["Dinov2Layer"]
    assert wrap_classes(tiny_models.build("swin")) == ["SwinLayer"]
    assert wrap_classes(tiny_models.build("convnext")) == ["ConvNextLayer"]
    assert wrap_classes(build("vit", "lora")) == ["ViTLayer"]


def test_an_empty_copy_takes_no_memory_and_can_be_filled():
    model = build("vit", "full")
    whole = empty_copy(model)
    assert all(parameter.is_meta for parameter in whole.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())
    whole.load_state_dict(model.state_dict(), assign=True)
    pixels = torch.randn(2, 3, 32, 32)
    answers = [m.eval()(pixel_values=pixels).logits for m in (whole, model)]
    assert torch.equal(*answers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method"), [("vit", "full"), ("vit", "lora"), ("swin", "full"), ("convnext", "full")]
)
def test_shards_come_out_as_one_plain_model(family, method, tmp_path):
    launching.run(2, "train_in_shards", family, method, str(tmp_path))
    alone = build(family, method)
    optimizer = make_optimizer(alone)
    for number in range(STEPS):
        train_step(alone, optimizer, number, slice(None))
    plain = alone.merge_and_unload() if method == "lora" else alone
    folder = tmp_path / "model"
    saved = dict(AutoModelForImageClassification.from_pretrained(folder).named_parameters())
    assert all((p - saved[name]).abs().max() < 1e-5 for name, p in plain.named_parameters())
    assert int((tmp_path / "wrapped").read_text()) == tiny_models.BLOCKS[family] + 1
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    classify = pipeline("image-classification", model=str(folder))
    assert len(classify(PIL.Image.new("RGB", (32, 32)))) == 5
