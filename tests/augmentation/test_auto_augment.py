"""Augmentation policies and random erasing: torchvision's arithmetic and shares, and the same for
an image in any batch.
"""

import pickle

import numpy as np
import pytest
import torch
from helpers.waits import HostWaits, fake_cuda
from torchvision.transforms.v2 import (
    AutoAugment,
    AutoAugmentPolicy,
    InterpolationMode,
    RandAugment,
    TrivialAugmentWide,
)
from torchvision.transforms.v2 import functional as tv
from transformers import ViTImageProcessor

from hf_cifar.augmentation import auto_augment
from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.image_store import ImageFiles, ImageTable
from hf_cifar.data.splits import Split

THEIRS = {
    "randaugment": RandAugment(),
    "trivialaugment": TrivialAugmentWide(),
    "autoaugment": AutoAugment(AutoAugmentPolicy.CIFAR10),
}
CPU = torch.device("cpu")
NEAREST = InterpolationMode.NEAREST


def transforms(size=32, **kwargs):
    return Transforms(ViTImageProcessor(size={"height": size, "width": size}), size, **kwargs)


def pictures(n, height=32, width=32, seed=0):
    """Smooth pictures of all brightnesses, one of noise and one that is plain."""
    small = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (n, 3, 5, 5), dtype=np.uint8)
    )
    images = tv.resize(small, [height, width], antialias=True)
    images[0] = torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)
    )
    images[-1] = 77
    return images


def counters(n, epoch=0, first=0):
    return torch.full((n,), epoch), torch.arange(first, first + n)


# ---- operations ----


@pytest.mark.parametrize("size", [(32, 32), (24, 45)])
@pytest.mark.parametrize("policy", THEIRS)
def test_every_operation_at_every_magnitude_is_torchvisions(policy, size):
    values, images = auto_augment.magnitudes(policy, *size), pictures(4, *size)
    for row, (name, (_, signed)) in enumerate(auto_augment.SPACES[policy].items()):
        asked = sorted({s * v for v in values[row] for s in ((1, -1) if signed else (1,))})
        plan = auto_augment.group(np.array([name] * 4 * len(asked)), np.repeat(asked, 4), size)
        ours = auto_augment.apply(images.repeat(len(asked), 1, 1, 1), [plan])
        theirs = torch.cat(
            [
                THEIRS[policy]._apply_image_or_video_transform(images, name, float(m), NEAREST, {})
                for m in asked
            ]
        )
        if name in ("ShearX", "ShearY", "Rotate") and size != (
            32,
            32,
        ):  # a few pixels come from exactly between two others
            assert (ours != theirs).float().mean() < 1e-3, name
        else:
            assert torch.equal(ours, theirs), name
        if name not in ("Identity", "AutoContrast"):
            assert not torch.equal(theirs[:4], images) or not torch.equal(theirs[-4:], images), (
                name
            )  # it did something


def test_operations_of_a_batch_are_applied_each_to_its_own_image():
    images = pictures(6)
    kinds = np.array(["Invert", "ShearX", "Identity", "Invert", "Rotate", "Solarize"])
    magnitude = np.array([0.0, 0.2, 0.0, 0.0, -30.0, 0.5])
    ours = auto_augment.apply(images, [auto_augment.group(kinds, magnitude, (32, 32))])
    apply = THEIRS["randaugment"]._apply_image_or_video_transform
    theirs = [
        apply(i, k, float(m), NEAREST, {}) for i, k, m in zip(images, kinds, magnitude, strict=True)
    ]
    assert torch.equal(ours, torch.stack(theirs))
    assert torch.equal(images, pictures(6))  # what came in is left alone


# ---- what is drawn ----


def shares(policy, num_ops=2, level=9, n=6000):
    """Share of each operation, per round, and the signed magnitudes of all images."""
    return auto_augment._choices(policy, num_ops, level, 3, *counters(n))


def test_randaugment_draws_every_operation_alike_at_one_level():
    op, bin, negative = shares("randaugment", num_ops=3, level=11)
    assert op.shape == (3, 6000) and (bin == 11).all()
    counts = np.stack([np.bincount(o, minlength=14) for o in op]) / 6000
    assert counts.shape == (3, 14) and np.abs(counts - 1 / 14).max() < 0.015
    assert abs(negative.mean() - 0.5) < 0.02
    assert (
        np.abs(np.corrcoef(op) - np.eye(3)).max() < 0.05
    )  # one operation says nothing of the next


def test_trivialaugment_draws_one_operation_at_any_level():
    op, bin, negative = shares("trivialaugment")
    assert op.shape == (1, 6000)
    assert np.abs(np.bincount(op[0], minlength=14) / 6000 - 1 / 14).max() < 0.015
    assert np.abs(np.bincount(bin[0], minlength=31) / 6000 - 1 / 31).max() < 0.012
    assert abs(negative.mean() - 0.5) < 0.03


def test_autoaugment_draws_cifar10s_pairs_with_their_chances():
    op, bin, _ = shares("autoaugment", n=25_000)
    names = list(auto_augment.SPACES["autoaugment"])
    want = np.zeros((2, len(names)))
    for pair in THEIRS["autoaugment"]._policies:
        for turn, (name, chance, _) in enumerate(pair):
            want[turn, names.index(name)] += chance / 25
            want[turn, names.index("Identity")] += (1 - chance) / 25
    found = np.stack([np.bincount(o, minlength=len(names)) for o in op]) / 25_000
    assert np.abs(found - want).max() < 0.01
    assert set(bin[0][op[0] == names.index("Rotate")]) == {2}  # the only pair that begins so


@pytest.mark.parametrize("policy", THEIRS)
def test_the_counter_decides_and_a_policy_moves_no_crop(policy):
    plain = transforms(scale=(0.3, 1.0), flip=0.5, seed=1)
    t = transforms(scale=(0.3, 1.0), flip=0.5, seed=1, policy=(policy, 2, 9))
    images, counter = pictures(40), counters(40)
    rounds = t.draw_policy(*counter, (32, 32))
    got = t.augment(images, *counter, rounds)
    assert torch.equal(got, plain.augment(auto_augment.apply(images, rounds), *counter))
    changed = (got != plain.augment(images, *counter)).flatten(1).any(1)
    assert 20 <= changed.sum() <= 40
    again = pickle.loads(pickle.dumps(t))
    assert torch.equal(again.augment(images, *counter, again.draw_policy(*counter, (32, 32))), got)
    later = counters(40, epoch=1)
    assert [r["counts"] for r in t.draw_policy(*later, (32, 32))] != [r["counts"] for r in rounds]


# ---- random erasing ----


def test_erased_boxes_have_torchvisions_shares_and_are_as_frequent_as_asked():
    n, size = 4000, 32
    mask = transforms(erasing=0.25, seed=2).erased(size, *counters(n))
    hit = mask.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.03
    boxes = mask[hit]
    heights, widths = boxes.any(2).sum(1), boxes.any(1).sum(1)
    assert torch.equal(boxes.sum((1, 2)), heights * widths)  # a box, and whole
    area = heights * widths / size**2
    assert area.min() > 0.01 and area.max() < 0.36 and abs(area.mean() - 0.175) < 0.02
    ratio = (heights / widths).log()
    assert ratio.abs().max() < np.log(3.3) + 0.5 and abs(ratio.mean()) < 0.1
    everywhere = boxes.float().mean(0)
    assert everywhere.min() > 0 and everywhere[16, 16] > everywhere[0, 0]  # every pixel may go


def test_erasing_leaves_the_mean_and_the_rest_alone():
    t, plain, images, counter = transforms(erasing=1.0), transforms(), pictures(50), counters(50)
    got, before = t.train(images, *counter), plain.train(images, *counter)
    mask = t.erased(32, *counter)[:, None].expand(-1, 3, -1, -1)
    assert mask.flatten(1).any(1).all()
    assert (got[mask] == 0).all() and torch.equal(got[~mask], before[~mask])


# ---- batches ----


class _Pictures(ImageFiles):
    """Images of many sizes, made on the spot."""

    def __init__(self, images):
        self.images, self.labels = images, np.arange(len(images), dtype=np.int64)

    def read(self, row):
        return self.images[row]


def batches(images, **keys):
    if isinstance(images, torch.Tensor):
        labels = np.arange(len(images), dtype=np.int64) % 10
        images = ImageTable(images.numpy(), labels, list("abcdefghij"), "f", [])
    t = transforms(24, scale=(0.4, 1.0), flip=0.5, erasing=0.5, seed=4, **keys)
    return ImageBatches(
        Split("train", images, np.arange(len(images.labels)), images.labels), t, training=True
    )


def pixels(source, tickets):
    return source.model_inputs(source.__getitems__(tickets), CPU)["pixel_values"]


@pytest.mark.parametrize("policy", THEIRS)
def test_an_image_is_the_same_in_any_batch(policy):
    source = batches(pictures(32), policy=(policy, 2, 9))
    whole = pixels(source, list(range(64, 96)))
    assert torch.equal(pixels(source, list(range(64, 96))), whole)
    assert torch.equal(
        torch.cat([pixels(source, list(range(i, i + 8))) for i in range(64, 96, 8)]), whole
    )
    assert torch.equal(torch.cat([pixels(source, [i]) for i in range(64, 96)]), whole)
    on_device = batches(pictures(32), policy=(policy, 2, 9))
    on_device.resident = pictures(32)
    assert torch.equal(pixels(on_device, list(range(64, 96))), whole)


def test_images_of_mixed_sizes_are_what_each_would_be_alone():
    sizes = ((32, 32), (50, 20), (19, 70), (32, 32))
    source = batches(
        _Pictures([pictures(2, h, w, seed=h)[0] for h, w in sizes]), policy=("trivialaugment", 1, 0)
    )
    alone = torch.cat([pixels(source, [i]) for i in range(40)])
    together = torch.cat([pixels(source, list(range(i, i + 4))) for i in range(0, 40, 4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_evaluation_sees_the_images_as_they_are():
    source = batches(pictures(8), policy=("randaugment", 2, 9))
    source.training = False
    assert torch.equal(pixels(source, list(range(8))), source.transforms.evaluate(pictures(8)))


@pytest.mark.parametrize("policy", THEIRS)
def test_no_operation_copies_between_host_and_device(policy):
    """On fake CUDA tensors, so that a copy shows without a GPU."""
    kinds = np.array(list(auto_augment.SPACES[policy]) * 2)
    plan = auto_augment.group(kinds, np.full(len(kinds), 0.3), (32, 32))
    t = transforms(erasing=0.5)
    with fake_cuda():
        images = torch.zeros(len(kinds), 3, 32, 32, dtype=torch.uint8, device="cuda")
        there = {
            k: torch.zeros(v.shape, dtype=v.dtype, device="cuda")
            for k, v in plan.items()
            if k != "counts"
        }
        index = torch.arange(len(kinds), device="cuda")
        t.train(
            images, index, index
        )  # the processor keeps its mean and deviation on the device from here on
        with HostWaits() as waits:
            assert t.train(images, index, index, [there | {"counts": plan["counts"]}]).shape == (
                len(kinds),
                3,
                32,
                32,
            )
    assert waits.seen == []
