"""AugMix: torchvision's operations, the paper's draws and mixture, the same for an image in any
batch, and a loss that is the paper's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.waits import HostWaits, fake_cuda
from torch.utils import _pytree as pytree
from torchvision.transforms.v2 import AugMix, InterpolationMode
from torchvision.transforms.v2 import functional as tv
from transformers import ViTImageProcessor

from hf_cifar.augmentation import augmix, auto_augment
from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.image_store import ImageFiles, ImageTable
from hf_cifar.data.splits import Split

CPU = torch.device("cpu")
POLICY = ("augmix", 0, 0)


def pictures(count: int, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth pictures, the first of noise and the last plain; uint8 [n, 3, H, W]."""
    random = np.random.default_rng(seed)
    small = torch.from_numpy(random.integers(0, 256, (count, 3, 5, 5), dtype=np.uint8))
    images = tv.resize(small, [height, width], antialias=True)
    images[0] = torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))
    images[-1] = 77
    return images


def counters(count: int, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((count,), epoch), torch.arange(count)


class Pictures(ImageFiles):
    """Images of many sizes, made on the spot."""

    def __init__(self, images: list[torch.Tensor]) -> None:
        self.images, self.labels = images, np.arange(len(images), dtype=np.int64)

    def read(self, row: int) -> torch.Tensor:
        return self.images[row]


def batches(images: Any, side: int = 24, fuse: bool = False, **keys: Any) -> ImageBatches:
    resident = images if fuse else None
    if isinstance(images, torch.Tensor):
        labels = np.arange(len(images), dtype=np.int64) % 10
        images = ImageTable(images.numpy(), labels, list("abcdefghij"), "f", [])
    processor = ViTImageProcessor(size={"height": side, "width": side})
    settings = {"policy": POLICY, "mixtures": 2, "scale": (0.4, 1.0), "flip": 0.5, "seed": 4} | keys
    transforms = Transforms(processor, side, **settings)
    split = Split("train", images, np.arange(len(images.labels)), images.labels)
    return ImageBatches(split, transforms, training=True, resident=resident, fuse=fuse)


def pixels(source: ImageBatches, tickets: list[int]) -> torch.Tensor:
    """Return [views, B, 3, S, S]."""
    inputs = source.model_inputs(source.__getitems__(tickets), CPU)
    assert len(inputs["labels"]) == len(tickets)
    return inputs["pixel_values"].unflatten(0, (-1, len(tickets)))


# ---- operations ----


def test_the_operations_are_those_of_torchvision_that_test_sets_do_not_have() -> None:
    assert set(augmix.OPERATIONS) == set(AugMix._PARTIAL_AUGMENTATION_SPACE)
    functions = {"Affine" if name in auto_augment.AFFINE else name for name in augmix.OPERATIONS}
    assert set(augmix.FUNCTIONS) == functions


@pytest.mark.parametrize("size", [(32, 32), (24, 45)])
@pytest.mark.parametrize("kind", augmix.OPERATIONS)
def test_every_operation_is_torchvisions(kind: str, size: tuple[int, int]) -> None:
    strengths = np.linspace(0.01, 0.3, 9)
    values = augmix.magnitudes(np.array([kind] * 9), strengths, size)
    asked = np.unique(np.concatenate([values, -values]) if kind in auto_augment.AFFINE else values)
    images = pictures(4, *size)
    plan = auto_augment.group(np.array([kind] * 4 * len(asked)), np.repeat(asked, 4), size)
    ours = auto_augment.apply(images.repeat(len(asked), 1, 1, 1), [plan], mode="bilinear")
    apply = AugMix()._apply_image_or_video_transform
    theirs = torch.cat(
        [apply(images, kind, float(m), InterpolationMode.BILINEAR, {}) for m in asked]
    )
    if size == (32, 32):
        assert torch.equal(ours, theirs)
    else:  # another order of float32 operations: a few pixels are rounded the other way
        difference = (ours.int() - theirs.int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3
    if kind != "AutoContrast":
        assert not torch.equal(ours[-4:], images)


def test_strengths_are_the_papers() -> None:
    """By int_parameter and float_parameter of the authors' program, at a level of 3."""
    values = augmix.magnitudes(augmix.OPERATIONS, np.full(9, 0.3), (32, 32))
    by_name = dict(zip(augmix.OPERATIONS.tolist(), values, strict=True))
    assert by_name["Rotate"] == int(3 * 30 / 10) and by_name["Posterize"] == 4 - int(3 * 4 / 10)
    assert by_name["ShearX"] == by_name["ShearY"] == pytest.approx(3 * 0.3 / 10)
    assert int(by_name["TranslateX"]) == int(3 * (32 / 3) / 10)
    assert by_name["Solarize"] * 255 == pytest.approx(256 - int(3 * 256 / 10))


# ---- what is drawn ----


def test_shares_depths_and_operations_have_the_papers_distributions() -> None:
    count = 6000
    drawn = augmix.draw(3, *counters(count), (32, 32), 2, counted=False)
    shares = drawn["shares"].double()
    assert torch.allclose(shares.sum(1), torch.ones(2, count, dtype=torch.double), atol=1e-6)
    own = shares[:, 0]  # Beta(1, 1) is uniform
    assert abs(own.mean() - 0.5) < 0.01 and abs(own.var() - 1 / 12) < 0.003
    chains = (shares[:, 1:] / (1 - own)[:, None]).numpy()
    # Dirichlet(1, 1, 1): means 1/3, variances 1/18, covariances -1/36
    assert np.abs(chains.mean(2) - 1 / 3).max() < 0.01
    assert np.abs(chains.var(2) - 1 / 18).max() < 0.003
    assert abs(np.cov(chains[0])[0, 1] + 1 / 36) < 0.003
    assert abs(np.corrcoef(own[0], own[1])[0, 1]) < 0.05  # the mixtures of an image differ
    identity = list(auto_augment.OPERATIONS).index("Identity")
    names = auto_augment.OPERATIONS
    for number, plan in enumerate(drawn["rounds"]):
        assert len(plan["order"]) == 2 * augmix.WIDTH * count
        ended = (plan["operation"] == identity).double().mean()
        assert abs(ended - number / 3) < 0.01  # 1, 2 or 3 operations at even chance
        affine = (plan["operation"] == list(names).index("Affine")).double().mean()
        assert abs(affine - (1 - ended) * 5 / 9) < 0.01


def test_a_mixture_is_the_weighted_sum_of_its_chains() -> None:
    images, counter = pictures(6), counters(6)
    drawn = augmix.draw(1, *counter, (32, 32), 2)
    ours = augmix.mix(images, drawn)
    assert ours.dtype == torch.float32 and ours.shape == (12, 3, 32, 32)
    chains = auto_augment.apply(
        images.repeat(6, 1, 1, 1), drawn["rounds"], functions=augmix.FUNCTIONS, mode="bilinear"
    ).double()
    for mixture in range(2):
        for row in range(6):
            shares = drawn["shares"][mixture, :, row].double()
            expected = shares[0] * images[row]
            for chain in range(3):
                expected += shares[1 + chain] * chains[(mixture * 3 + chain) * 6 + row]
            torch.testing.assert_close(
                ours[mixture * 6 + row].double(), expected, atol=1e-3, rtol=0
            )
    assert torch.equal(images, pictures(6))  # what came in is left alone


# ---- batches ----


def test_views_share_their_crop_and_the_first_is_the_image() -> None:
    source, plain = batches(pictures(16)), batches(pictures(16), policy=None, mixtures=None)
    views = pixels(source, list(range(16)))
    assert views.shape == (3, 16, 3, 24, 24)
    assert torch.equal(views[0], pixels(plain, list(range(16)))[0])
    likeness = [torch.corrcoef(views[:2, i].flatten(1))[0, 1] for i in range(1, 15)]
    assert np.mean(likeness) > 0.5
    assert not torch.equal(views[1], views[2])
    alone = batches(pictures(16), mixtures=None)
    assert torch.equal(pixels(alone, list(range(16)))[0], views[1])
    later = pixels(source, list(range(16, 32)))
    assert not torch.equal(later[1], views[1])


@pytest.mark.parametrize("side", [24, 48])  # cropped before it is mixed, and mixed before
def test_an_image_is_the_same_in_any_batch(side: int) -> None:
    source, first = batches(pictures(24), side, erasing=0.5), list(range(48, 72))
    whole = pixels(source, first)
    for size in (1, 7):
        parts = [pixels(source, first[i : i + size]) for i in range(0, 24, size)]
        assert torch.equal(torch.cat(parts, 1), whole)
    on_device = batches(pictures(24), side, erasing=0.5)
    on_device.resident = pictures(24)
    assert torch.equal(pixels(on_device, first), whole)


def test_images_of_mixed_sizes_are_what_each_would_be_alone() -> None:
    sizes = ((32, 32), (50, 20), (19, 12), (32, 32))
    source = batches(Pictures([pictures(2, h, w, seed=h)[0] for h, w in sizes]))
    alone = torch.cat([pixels(source, [i]) for i in range(16)], 1)
    together = torch.cat([pixels(source, list(range(i, i + 4))) for i in range(0, 16, 4)], 1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert together.shape == (3, 16, 3, 24, 24)
    tabled = pixels(batches(pictures(2, 32, 32, seed=32)), [0])
    step = 1.01 / (255 * 0.5)  # workers send whole grey levels
    torch.testing.assert_close(alone[:, :1], tabled, atol=step, rtol=0)


def test_every_operation_on_all_images_gives_the_same_bits() -> None:
    fused, plain = batches(pictures(16), fuse=True), batches(pictures(16))
    assert fused.fused is not None
    fused.fused.compiles = False  # the same operations, one by one
    for first in (0, 16, 32):
        tickets = list(range(first, first + 16))
        assert torch.equal(pixels(fused, tickets), pixels(plain, tickets))


def test_it_can_be_traced() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    source = batches(pictures(8), fuse=True, erasing=0.5)
    batch = source.__getitems__(list(range(4))) | {"resident": source.resident}
    leaves, structure = pytree.tree_flatten(batch)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)

    def finish(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return source._finish(pytree.tree_unflatten(leaves, structure), None)

    for ours, expected in zip(make_fx(finish)(*leaves)(*leaves), finish(*leaves), strict=True):
        assert torch.equal(ours, expected)


def test_nothing_is_copied_between_host_and_device() -> None:
    """On fake CUDA tensors, so that a copy shows without a GPU."""
    drawn = augmix.draw(0, *counters(8), (32, 32), 2)
    with fake_cuda():
        images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device="cuda")
        there = pytree.tree_map_only(
            torch.Tensor, lambda v: torch.zeros(v.shape, dtype=v.dtype, device="cuda"), drawn
        )
        with HostWaits() as waits:
            assert augmix.mix(images, there).shape == (16, 3, 32, 32)
    assert waits.seen == []


def test_magnitudes_do_not_depend_on_what_else_is_drawn() -> None:
    """A mixture's draws are its own: the second does not move where there is a third."""
    two, three = (augmix.draw(5, *counters(10), (32, 32), n)["shares"] for n in (2, 3))
    assert torch.equal(two, three[:2]) and math.isclose(float(two.sum()), 20, rel_tol=1e-5)
