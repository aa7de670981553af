"""Several processes share the work on a frozen backbone: each image run_over_images over all of
them, and the bits of one process.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_run import BASE

from hf_cifar.features.extract import run_over_images

ROOT = Path(__file__).parents[2]
COUNTS = """
import json, os, sys
import hf_cifar
from hf_cifar import run

seen, load = [], run.load_backbone

def counted(*args):
    backbone = load(*args)
    def note(_, args, kwargs):
        pixels = kwargs["pixel_values"]
        # what stands in for them is one number, expanded
        seen.append(len(pixels) if pixels.stride(0) else 0)

    backbone.model.register_forward_pre_hook(note, with_kwargs=True)
    return backbone

run.load_backbone = counted
hf_cifar.train(sys.argv[1], output_dir=sys.argv[2])
with open(f"{sys.argv[2]}-{os.environ.get('RANK', '0')}.json", "w") as file:
    json.dump(seen, file)
"""


class Numbers(torch.utils.data.Dataset):
    """Five images of which pixel values are their tickets."""

    def __len__(self):
        return 5

    def __getitems__(self, tickets):
        return {"pixel_values": torch.tensor(tickets, dtype=torch.float32)[:, None]}

    def model_inputs(self, batch, device):
        return batch


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_order_and_draw_nothing(workers):
    state = torch.get_rng_state()
    sizes: list[int] = []

    def run(pixels):
        sizes.append(len(pixels))
        return torch.cat([pixels, -pixels], dim=1)

    found = torch.cat(list(run_over_images(Numbers(), 2, 3, run, torch.empty(0, 2), workers)))
    assert found.tolist() == [[float(i), -float(i)] for i in range(10)] and sizes == [3, 2, 3, 2]
    assert torch.equal(torch.get_rng_state(), state)


def launch(ranks, recipe, folder, caches):
    """`ranks` of 1 or 2 processes: with one cache on one node, with a list of them on a node each."""
    script = folder.parent / "counts.py"
    script.write_text(COUNTS)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "torch.distributed.run"]
    if ranks == 1:
        commands = [[sys.executable]]
    elif len(caches) == 1:
        commands = [[*run, "--standalone", "--nproc_per_node", "2"]]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        at = [
            "--nnodes",
            "2",
            "--nproc_per_node",
            "1",
            "--master_addr",
            "127.0.0.1",
            "--master_port",
            port,
        ]
        commands = [[*run, *at, "--node_rank", str(node)] for node in range(2)]
    running = [
        subprocess.Popen(
            [*command, str(script), str(recipe), str(folder)],
            env=env | {"HF_CIFAR_CACHE": str(cache)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, cache in zip(commands, caches, strict=True)
    ]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return [
        json.loads((folder.parent / f"{folder.name}-{rank}.json").read_text())
        for rank in range(ranks)
    ]


def entries(cache):
    return {p.name: np.load(p) for p in (cache / "features").glob("*")}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "nodes"), [("linear", 2), ("partial", 1)])
def test_two_processes_share_the_images(method, nodes, tiny, tmp_path):
    keys = BASE | {
        "model_name_or_path": str(tiny("vit")),
        "method": method,
        "per_device_eval_batch_size": 7,
    }
    keys |= {
        "random_resized_crop_scale": None,
        "horizontal_flip": 0.0,
        "feature_views": 1,
        "num_train_epochs": 1,
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(keys))
    sizes = sorted([7] * 5 + [5] + [7, 7, 6] * 2)  # train, validation, test
    caches = [tmp_path / f"cache{node}" for node in range(nodes)]
    probes = (
        (1, 2, 3) if method == "partial" else (1,)
    )  # FLOPs and the probe of partial; training gives `hidden`

    def work(seen):
        """Sizes of what the backbone saw, but for the images of probes and (partial) the training's
        own calls.
        """
        return [n for n in seen if n not in (0, *probes)]

    alone = launch(1, recipe, tmp_path / "one", [tmp_path / "cache"])
    assert sorted(work(alone[0])) == [n for n in sizes if n not in probes]
    shared = launch(2, recipe, tmp_path / "two", caches)
    assert sorted(work(shared[0]) + work(shared[1])) == [n for n in sizes if n not in probes]
    assert min(map(len, map(work, shared))) >= 3  # each its share
    want = entries(tmp_path / "cache")
    assert len(want) == 3
    for cache in caches:
        found = entries(cache)
        assert set(found) == set(want) and all(np.array_equal(found[k], v) for k, v in want.items())

    again = launch(2, recipe, tmp_path / "again", caches)
    assert not work(again[0]) and not work(again[1])
    if nodes == 2:  # one node lost its cache: both compute again, and neither waits for the other
        for path in (caches[1] / "features").iterdir():
            path.unlink()
        once_more = launch(2, recipe, tmp_path / "more", caches)
        assert sorted(work(once_more[0]) + work(once_more[1])) == [
            n for n in sizes if n not in probes
        ]
        assert set(entries(caches[1])) == set(want)
