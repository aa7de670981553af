"""Augmentation as a few compiled kernels gives what it gives operation by operation."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor import metrics
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from transformers import ViTImageProcessor

from hf_cifar.augmentation.fused import Fused
from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.image_store import ImageTable
from hf_cifar.data.splits import Split

CPU = torch.device("cpu")
N, SIDE = 24, 32
MIXED: dict[str, Any] = {"erasing": 0.5, "mixup": 0.8, "cutmix": 1.0}


def batches(fuse: bool, **keys: Any) -> ImageBatches:
    """Return a split of random images that lies on the device."""
    pixels = np.random.default_rng(0).integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8)
    labels = np.arange(N, dtype=np.int64) % 10
    table = ImageTable(pixels, labels, list("abcdefghij"), "fingerprint", [])
    processor = ViTImageProcessor(resample=3, size={"height": SIDE, "width": SIDE})
    transforms = Transforms(processor, SIDE, scale=(0.4, 1.0), flip=0.5, seed=4, **keys)
    split = Split("train", table, np.arange(N), labels)
    resident = torch.from_numpy(pixels)
    return ImageBatches(split, transforms, training=True, resident=resident, fuse=fuse)


def inputs(source: ImageBatches, tickets: list[int]) -> dict[str, torch.Tensor]:
    return source.model_inputs(source.__getitems__(tickets), CPU)


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment", "autoaugment"])
def test_every_operation_on_all_images_gives_the_same_bits(policy: str) -> None:
    fused, plain = (batches(fuse, policy=(policy, 2, 9)) for fuse in (True, False))
    assert fused.fused is not None
    fused.fused.compiles = False  # the same operations, one by one
    for epoch in range(4):
        tickets = list(range(epoch * N, (epoch + 1) * N))
        expected = inputs(plain, tickets)["pixel_values"]
        assert torch.equal(inputs(fused, tickets)["pixel_values"], expected)


def test_every_augmentation_can_be_traced() -> None:
    """What `compile_graph` does first; compiling this graph for a CPU would take minutes."""
    source = batches(True, policy=("randaugment", 2, 9), **MIXED)
    batch = source.__getitems__(list(range(8))) | {"resident": source.resident}
    leaves, structure = pytree.tree_flatten(batch)

    def finish(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return source._finish(pytree.tree_unflatten(leaves, structure), None)

    graph = make_fx(finish)(*leaves)
    for ours, expected in zip(graph(*leaves), finish(*leaves), strict=True):
        assert torch.equal(ours, expected)


def test_what_can_not_be_compiled_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def reads_a_value(batch: dict[str, Any], size: int | None) -> tuple[torch.Tensor, ...]:
        return (batch["x"] * float(batch["x"].sum()),)

    fused = Fused(reads_a_value)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(fused({"x": torch.ones(3)}, None)[0], torch.full((3,), 3.0))
    assert len(caplog.records) == 1
    assert caplog.messages[0].startswith("augmentation runs operation by operation: ")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler's backend for CPUs needs one")
@pytest.mark.parametrize(("keys", "kernels"), [({}, 14), (MIXED, 22)])
def test_compiled_it_is_few_kernels_and_the_same_images(keys: dict[str, Any], kernels: int) -> None:
    fused, plain = (batches(fuse, **keys) for fuse in (True, False))
    metrics.reset()
    for first in (0, 8, N):
        tickets = list(range(first, first + 8))
        ours, expected = inputs(fused, tickets), inputs(plain, tickets)
        torch.testing.assert_close(ours["labels"], expected["labels"])
        torch.testing.assert_close(
            ours["pixel_values"], expected["pixel_values"], atol=1e-4, rtol=0
        )
    assert fused.fused is not None and fused.fused.compiles and len(fused.fused.graphs) == 1
    assert metrics.generated_kernel_count <= kernels  # beside two batched matrix products
    inputs(fused, list(range(5)))
    assert len(fused.fused.graphs) == 2  # a batch of another size is a graph of its own
