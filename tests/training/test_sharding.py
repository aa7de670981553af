"""Shards over two gloo processes: blocks are wrapped, one plain model comes out, a sharded
checkpoint goes on to the same bits.

accelerate has no FSDP on a CPU, so torch's `fully_shard` and distributed checkpoint stand in for
its calls of them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_models
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from hf_cifar.methods.trainable import adapt
from hf_cifar.recipe.fields import MethodKeys
from hf_cifar.training.sharding import empty_copy, wrap_classes

TESTS = Path(__file__).parents[1]
STEPS, BATCH = 4, 8


def model_of(family, method):
    torch.manual_seed(0)
    model = tiny_models.build(family)
    return adapt(model, MethodKeys(method=method, lora_r=2, unfreeze_blocks=1), "base")


def step(model, optimizer, number, rows):
    random = torch.Generator().manual_seed(number)
    pixels, labels = (
        torch.randn(BATCH, 3, 32, 32, generator=random),
        torch.randint(10, (BATCH,), generator=random),
    )
    loss = torch.nn.functional.cross_entropy(model(pixel_values=pixels[rows]).logits, labels[rows])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def optimizer_of(model):
    return torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9
    )


def two_processes(family, method, folder):
    """Run by torchrun: train in shards, stop halfway, go on from the sharded checkpoint, gather,
    save.
    """
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    from hf_cifar.training.sharding import gathered

    dist.init_process_group("gloo")
    mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
    rows = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)

    def sharded():
        model = model_of(family, method)
        whole, names = empty_copy(model), wrap_classes(model)
        for module in model.modules():
            if type(module).__name__ in names:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        wrapped = sum(isinstance(m, FSDPModule) for m in model.modules())
        return model, optimizer_of(model), whole, wrapped

    model, optimizer, _, _ = sharded()
    for number in range(STEPS // 2):
        step(model, optimizer, number, rows)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / "checkpoint")
    for number in range(STEPS // 2, STEPS):
        step(model, optimizer, number, rows)
    never_stopped = gathered(model)

    model, optimizer, whole, wrapped = sharded()
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    for number in range(STEPS // 2, STEPS):
        step(model, optimizer, number, rows)
    resumed = gathered(model)
    if rank == 0:
        assert all(torch.equal(v, resumed[n]) for n, v in never_stopped.items())
        whole.load_state_dict(resumed, assign=True)
        if method == "lora":
            whole = whole.merge_and_unload()
        whole.save_pretrained(folder / "model")
        tiny_models.processor(family).save_pretrained(folder / "model")
        (folder / "wrapped").write_text(str(wrapped))
    else:
        assert not resumed
    dist.destroy_process_group()


def test_what_is_gathered_at_a_time_is_a_block():
    assert wrap_classes(tiny_models.build("vit")) == ["ViTLayer"]
    assert wrap_classes(tiny_models.build("dinov2")) == ["Dinov2Layer"]
    assert wrap_classes(tiny_models.build("swin")) == ["SwinLayer"]
    assert wrap_classes(tiny_models.build("convnext")) == ["ConvNextLayer"]
    assert wrap_classes(model_of("vit", "lora")) == ["ViTLayer"]


def test_an_empty_copy_takes_no_memory_and_is_filled():
    model = model_of("vit", "full")
    whole = empty_copy(model)
    assert all(p.is_meta for p in whole.parameters()) and not any(
        p.is_meta for p in model.parameters()
    )
    whole.load_state_dict(model.state_dict(), assign=True)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(
        whole.eval()(pixel_values=pixels).logits, model.eval()(pixel_values=pixels).logits
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method"), [("vit", "full"), ("vit", "lora"), ("swin", "full"), ("convnext", "full")]
)
def test_shards_come_out_as_one_plain_model(family, method, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
    ]
    done = subprocess.run(
        [*command, family, method, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = model_of(family, method)
    optimizer = optimizer_of(alone)
    for number in range(STEPS):
        step(alone, optimizer, number, slice(None))
    plain = alone.merge_and_unload() if method == "lora" else alone
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    others = dict(saved.named_parameters())
    assert all((p - others[n]).abs().max() < 1e-5 for n, p in plain.named_parameters())
    assert int((tmp_path / "wrapped").read_text()) == tiny_models.BLOCKS[family] + 1
    assert [p.name for p in (tmp_path / "model").glob("*.safetensors")] == ["model.safetensors"]
    assert load_file(tmp_path / "model" / "model.safetensors")
    from PIL import Image

    answer = pipeline("image-classification", model=str(tmp_path / "model"))(
        Image.new("RGB", (32, 32))
    )
    assert len(answer) == 5


if __name__ == "__main__":
    two_processes(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
