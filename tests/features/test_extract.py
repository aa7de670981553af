"""Several processes share the work on a frozen backbone: each image goes through it once over all
of them, with the bits of one process.
"""

import json
import socket

import numpy as np
import pytest
import torch
from helpers.launching import finish, launch
from helpers.runs import write_recipe

from hf_cifar.features.extract import run_over_images


class NumberedImages(torch.utils.data.Dataset):
    """Five images whose pixel values are their tickets."""

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

    batches = run_over_images(NumberedImages(), 2, 3, run, torch.empty(0, 2), workers)
    values = torch.cat(list(batches))
    assert values.tolist() == [[float(i), -float(i)] for i in range(10)] and sizes == [3, 2, 3, 2]
    assert torch.equal(torch.get_rng_state(), state)


def counted_runs(processes, recipe, folder, caches):
    """Train in 1 or 2 processes and return the image counts of each.

    With one cache two processes are on one node, with a list of two they are on a node each.
    """
    words = ("count_images", str(recipe), str(folder))
    if len(caches) == 1:
        running = [launch(processes, *words, HF_CIFAR_CACHE=str(caches[0]))]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = ("--master_addr", "127.0.0.1", "--master_port", str(free.getsockname()[1]))
        running = [
            launch(
                1,
                *words,
                options=("--nnodes", "2", "--node_rank", str(node), *address),
                HF_CIFAR_CACHE=str(cache),
            )
            for node, cache in enumerate(caches)
        ]
    for process in running:
        code, _, err = finish(process, timeout=300)
        assert code == 0, err
    files = [folder.parent / f"{folder.name}-{rank}.json" for rank in range(processes)]
    return [json.loads(file.read_text()) for file in files]


def entries(cache):
    return {path.name: np.load(path) for path in (cache / "features").glob("*.npy")}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "nodes"), [("linear", 2), ("partial", 1)])
def test_two_processes_share_the_images(method, nodes, tiny, tmp_path):
    keys = {
        "method": method,
        "per_device_eval_batch_size": 7,
        "random_resized_crop_scale": None,
        "horizontal_flip": 0.0,
        "feature_views": 1,
        "num_train_epochs": 1,
    }
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny("vit"), **keys)
    # One image counts FLOPs; partial tries two and three to find what stands in for its blocks.
    probes = (1, 2, 3) if method == "partial" else (1,)
    sizes = sorted([7] * 5 + [5] + [7, 7, 6] * 2)  # train, validation, test
    caches = [tmp_path / f"cache{node}" for node in range(nodes)]

    def without_probes(counts):
        return [count for count in counts if count not in probes]

    (alone,) = counted_runs(1, recipe, tmp_path / "one", [tmp_path / "cache"])
    assert sorted(without_probes(alone)) == sizes
    shares = [without_probes(c) for c in counted_runs(2, recipe, tmp_path / "two", caches)]
    assert sorted(shares[0] + shares[1]) == sizes and min(map(len, shares)) >= 3
    expected = entries(tmp_path / "cache")
    assert len(expected) == 3
    for cache in caches:
        computed = entries(cache)
        assert set(computed) == set(expected)
        assert all(np.array_equal(computed[name], values) for name, values in expected.items())

    again = counted_runs(2, recipe, tmp_path / "again", caches)
    assert not without_probes(again[0]) and not without_probes(again[1])
    if nodes == 2:  # one node lost its cache: both compute, and neither waits for the other
        for path in (caches[1] / "features").iterdir():
            path.unlink()
        shares = [without_probes(c) for c in counted_runs(2, recipe, tmp_path / "more", caches)]
        assert sorted(shares[0] + shares[1]) == sizes
        assert set(entries(caches[1])) == set(expected)
