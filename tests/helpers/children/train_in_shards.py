"""Run by torchrun with two processes: train in shards, stop halfway, resume from the sharded
checkpoint, gather and save.

train_in_shards.py FAMILY METHOD FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from helpers import tiny_models
from helpers.sharded_training import BATCH, STEPS, build, make_optimizer, train_step
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from hf_cifar.training.sharding import empty_copy, gathered_state, wrap_classes


def build_sharded(family, method, mesh):
    """Return the sharded model, its optimizer, an empty whole copy, the number of wrappers."""
    model = build(family, method)
    whole, names = empty_copy(model), wrap_classes(model)
    for module in model.modules():
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    wrapped = sum(isinstance(module, FSDPModule) for module in model.modules())
    return model, make_optimizer(model), whole, wrapped


def main(family: str, method: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
    rows = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)

    model, optimizer, _, _ = build_sharded(family, method, mesh)
    for number in range(STEPS // 2):
        train_step(model, optimizer, number, rows)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / "checkpoint")
    for number in range(STEPS // 2, STEPS):
        train_step(model, optimizer, number, rows)
    never_stopped = gathered_state(model)

    model, optimizer, whole, wrapped = build_sharded(family, method, mesh)
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    for number in range(STEPS // 2, STEPS):
        train_step(model, optimizer, number, rows)
    resumed = gathered_state(model)
    if rank == 0:
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in never_stopped.items())
        whole.load_state_dict(resumed, assign=True)
        if method == "lora":
            whole = whole.merge_and_unload()
        whole.save_pretrained(folder / "model")
        tiny_models.processor(family).save_pretrained(folder / "model")
        (folder / "wrapped").write_text(str(wrapped))
    else:
        assert not resumed
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
