"""Training and evaluation transforms: the arithmetic of torchvision, the geometry of boxes,
randomness that is a function.
"""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from transformers import ViTImageProcessor

from hf_cifar.augmentation.counter_rng import uniform
from hf_cifar.augmentation.transforms import Transforms, resampling
from hf_cifar.data.batches import ImageBatches, TicketSampler, whole_batch
from hf_cifar.data.image_store import ImageFiles, ImageTable
from hf_cifar.data.splits import Split

MODES = {2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}


def transforms(size=32, resample=2, **kwargs):
    return Transforms(
        ViTImageProcessor(size={"height": size, "width": size}, resample=resample), size, **kwargs
    )


def pictures(n, height=32, width=32, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    )


def smooth(n, height=32, width=32, seed=0):
    """Pictures whose neighbouring pixels are alike, as in photographs."""
    return tv.resize(pictures(n, 6, 6, seed), [height, width], antialias=True)


def counters(n, epoch=0, first=0):
    return torch.full((n,), epoch), torch.arange(first, first + n)


# ---- resize ----


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize(
    ("before", "after"),
    [((32, 32), 224), ((32, 32), 48), ((32, 32), 32), ((75, 40), 32), ((40, 200), 56)],
)
def test_a_whole_box_is_torchvisions_antialiased_resize(before, after, resample):
    images = pictures(2, *before)
    ours = transforms(after, resample).augment(images, *counters(2))
    theirs = tv.resize(images.float(), [after, after], MODES[resample], antialias=True).clamp(
        0, 255
    )
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize("resample", [2, 3])
def test_a_box_of_whole_pixels_is_torchvisions_resized_crop(resample):
    images = pictures(1, 40, 48).float()
    top, left, height, width = 7, 11, 20, 30
    rows = resampling(
        torch.tensor([7.0]), torch.tensor([20.0]), torch.tensor([False]), 40, 32, resample == 3
    )
    columns = resampling(
        torch.tensor([11.0]), torch.tensor([30.0]), torch.tensor([False]), 48, 32, resample == 3
    )
    ours = rows.mT[:, None] @ images @ columns[:, None]
    theirs = tv.resized_crop(
        images, top, left, height, width, [32, 32], MODES[resample], antialias=True
    )
    # Ours sees the pixels around the box, torchvision's has none there: they agree two and more
    # pixels inside.
    torch.testing.assert_close(ours[..., 4:-4, 4:-4], theirs[..., 4:-4, 4:-4], atol=2e-3, rtol=0)


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [24, 32, 96])
def test_training_on_whole_images_is_evaluation_but_for_rounding(size, resample):
    t, images = transforms(size, resample), smooth(8)
    difference = (t.train(images, *counters(8)) - t.evaluate(images)).abs()
    assert (
        difference.max() <= 1.5 / 127.5
    )  # evaluation rounds to uint8 after rows and after columns: half a level each
    assert difference.mean() <= 0.5 / 127.5


def test_evaluation_is_the_processors_own_call():
    t, images = transforms(48, 3), pictures(5, 40, 36)
    assert torch.equal(
        t.evaluate(images), t.processor(images=images, return_tensors="pt")["pixel_values"]
    )
    one_by_one = torch.stack([t.normalize(t.shrink(i)[None])[0] for i in images])
    assert t.shrink(images[0]).dtype == torch.uint8
    assert torch.equal(t.evaluate(images), one_by_one)


# ---- flips and boxes ----


def test_flips_are_exact_and_as_frequent_as_asked():
    images = pictures(64)
    plain = transforms().augment(images, *counters(64))
    assert torch.equal(transforms(flip=1.0).augment(images, *counters(64)), plain.flip(-1))
    assert torch.equal(plain, images.float())  # 32 pixels to 32: nothing is mixed
    half = transforms(flip=0.5).augment(images, *counters(64))
    mirrored = torch.tensor([torch.equal(a, b) for a, b in zip(half, plain.flip(-1), strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(half, plain, strict=True)])
    assert (mirrored ^ same).all() and 16 <= mirrored.sum() <= 48


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 80),
    width=st.integers(8, 80),
    scale=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
    seed=st.integers(0, 2**32 - 1),
)
def test_boxes_lie_inside_with_area_and_ratio_in_range(height, width, scale, ratio, seed):
    t, n = transforms(scale=tuple(scale), ratio=tuple(ratio), flip=0.5, seed=seed), 32
    (top, left), (h, w), _ = t.boxes(height, width, *counters(n))
    assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (top + h <= height * (1 + 1e-6)).all() and (left + w <= width * (1 + 1e-6)).all()
    share, shape = h * w / (height * width), w / h
    assert (share <= scale[1] * (1 + 1e-4)).all()
    uncut = (h < height) & (w < width)
    assert (share[uncut] >= scale[0] * (1 - 1e-4)).all()
    assert ((shape >= ratio[0] * (1 - 1e-4)) & (shape <= ratio[1] * (1 + 1e-4)))[uncut].all()


def test_the_picture_is_the_box():
    """Channels that hold coordinates tell where each output pixel was taken from."""
    height, width, out, n = 60, 80, 16, 200
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    images = torch.stack([y, x, x])[None].expand(n, -1, -1, -1)
    t = transforms(out, scale=(0.2, 0.9), ratio=(0.5, 2.0), flip=0.5)
    got = t.augment(images, *counters(n))
    (top, left), (h, w), flip = t.boxes(height, width, *counters(n))
    steps = (torch.arange(out) + 0.5) / out
    rows, columns = top[:, None] + h[:, None] * steps, left[:, None] + w[:, None] * steps
    columns = torch.where(flip[:, None], columns.flip(-1), columns)
    # A kernel that hangs over the border sees one side only; away from it, the mean of coordinates
    # is the coordinate.
    reach = (torch.maximum(h, w) / out).clamp(min=1)[:, None] + 0.5
    for seen, real, side in (
        (got[:, 0, :, out // 2], rows, height),
        (got[:, 1, out // 2], columns, width),
    ):
        clear = (real > reach) & (real < side - reach)
        assert clear.float().mean() > 0.7
        torch.testing.assert_close(seen[clear], real[clear], atol=0.15, rtol=0)
    assert (got[flip][:, 1, 0, 0] > got[flip][:, 1, 0, -1]).all() and (
        got[~flip][:, 1, 0, 0] < got[~flip][:, 1, 0, -1]
    ).all()


def test_crops_are_between_the_least_and_the_whole():
    """A white picture stays white wherever the box falls: no row of weights reaches outside or sums
    to anything but one.
    """
    t = transforms(20, 3, scale=(0.05, 1.0), flip=0.5)
    white = torch.full((200, 3, 33, 57), 255, dtype=torch.uint8)
    torch.testing.assert_close(
        t.augment(white, *counters(200)), torch.full((200, 3, 20, 20), 255.0), atol=1e-3, rtol=0
    )


# ---- randomness ----


def test_uniform_is_uniform():
    n = 20_000
    draws = uniform(3, *counters(n), 5).double().numpy()
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.stack([np.histogram(d, bins=20, range=(0, 1))[0] for d in draws.T])
    chi2 = ((counts - n / 20) ** 2 / (n / 20)).sum(1)
    assert chi2.max() < 45  # 19 degrees of freedom: above 43.8 once in a thousand
    correlation = np.corrcoef(np.concatenate([draws.T, np.roll(draws.T, 1, axis=1)]))
    assert (
        np.abs(correlation - np.eye(10)).max() < 0.04
    )  # of draws with each other and with the image before


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 10_000),
    index=st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    data=st.data(),
)
def test_uniform_is_a_function_of_seed_epoch_and_index(seed, epoch, index, data):
    epochs, indices = torch.full((len(index),), epoch), torch.tensor(index)
    whole = uniform(seed, epochs, indices, 5)
    order = torch.tensor(data.draw(st.permutations(range(len(index)))))
    assert torch.equal(uniform(seed, epochs[order], indices[order], 5), whole[order])
    alone = torch.cat(
        [uniform(seed, epochs[i : i + 1], indices[i : i + 1], 5) for i in range(len(index))]
    )
    assert torch.equal(alone, whole)
    assert torch.equal(uniform(seed, epochs, indices, 3), whole[:, :3])


@pytest.mark.parametrize("change", ["seed", "epoch", "index"])
def test_neighbouring_counters_share_nothing(change):
    n = 2000
    epoch, index = counters(n)
    other = {
        "seed": (1, epoch, index),
        "epoch": (0, epoch + 1, index),
        "index": (0, epoch, index + 1),
    }[change]
    a, b = uniform(0, epoch, index, 5), uniform(*other, 5)
    assert (a == b).sum() <= 3  # 2^-24 of 10,000 would be none
    assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.04


# ---- batches ----


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    n = 37
    labels = np.arange(n, dtype=np.int64) % 10
    pixels = pictures(n, seed=5).numpy()
    return ImageTable(
        pixels=pixels, labels=labels, label_names=list("abcdefghij"), fingerprint="f", bad=[]
    )


def batches_of(images, training=True, **kwargs):
    rows = np.arange(len(images.labels))
    keys = {"scale": (0.3, 1.0), "flip": 0.5, "seed": 4} | kwargs
    return ImageBatches(
        Split("train", images, rows, images.labels), transforms(24, 3, **keys), training=training
    )


CPU = torch.device("cpu")


def test_order_and_split_of_batches_change_nothing(table):
    batches = batches_of(table)
    n = len(batches)
    whole = batches.model_inputs(batches.__getitems__(list(range(n))), CPU)["pixel_values"]
    order = np.random.default_rng(0).permutation(n).tolist()
    pieces = [order[:1], order[1:6], order[6:20], order[20:]]
    got = torch.empty_like(whole)
    for piece in pieces:
        inputs = batches.model_inputs(batches.__getitems__(piece), CPU)
        got[piece] = inputs["pixel_values"]
        assert inputs["labels"].tolist() == [i % 10 for i in piece]
    assert torch.equal(got, whole)
    later = batches.model_inputs(batches.__getitems__([n + i for i in range(n)]), CPU)[
        "pixel_values"
    ]
    assert all(
        not torch.equal(a, b) for a, b in zip(whole, later, strict=True)
    )  # every image is cut anew each epoch
    other = batches_of(table, seed=5)
    assert not torch.equal(
        other.model_inputs(other.__getitems__(list(range(n))), CPU)["pixel_values"], whole
    )


@pytest.mark.parametrize("training", [True, False])
def test_workers_and_the_resident_table_give_the_same_bits(table, training):
    batches = batches_of(table, training)
    tickets = list(TicketSampler(len(batches), 0, lambda: 2))
    assert sorted(t - 2 * len(batches) for t in tickets) == list(range(len(batches)))
    direct = [
        batches.model_inputs(batches.__getitems__(tickets[i : i + 10]), CPU)
        for i in range(0, len(tickets), 10)
    ]
    resident = batches_of(table, training)
    resident.resident = torch.from_numpy(table.pixels)
    for source, workers in ((batches, 2), (batches, 0), (resident, 0)):
        sampler = TicketSampler(len(batches), 0, lambda: 2)
        loader = torch.utils.data.DataLoader(
            source, 10, sampler=sampler, num_workers=workers, collate_fn=whole_batch
        )
        for got, want in zip(loader, direct, strict=True):
            inputs = source.model_inputs(got, CPU)
            assert torch.equal(inputs["pixel_values"], want["pixel_values"])
            assert torch.equal(inputs["labels"], want["labels"])


def test_transforms_travel_to_workers():
    t = pickle.loads(pickle.dumps(transforms(40, 3, scale=(0.5, 1.0), flip=0.5, seed=9)))
    images = pictures(3)
    again = transforms(40, 3, scale=(0.5, 1.0), flip=0.5, seed=9)
    assert torch.equal(t.train(images, *counters(3)), again.train(images, *counters(3)))


def test_the_order_of_an_epoch_is_its_own():
    def order(seed, epoch):
        return [t - 100 * epoch for t in TicketSampler(100, seed, lambda: epoch)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(s, e)) for s, e in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


class _Pictures(ImageFiles):
    """Images of many sizes, made on the spot."""

    def __init__(self, images):
        self.images, self.labels = images, np.arange(len(images), dtype=np.int64)

    def read(self, row):
        return self.images[row]


@pytest.mark.parametrize("training", [True, False])
def test_mixed_sizes_in_a_batch_are_what_each_would_be_alone(training):
    images = [pictures(1, h, w, seed=h)[0] for h, w in ((32, 32), (50, 20), (19, 70), (32, 32))]
    batches = batches_of(_Pictures(images), training)
    mixed = batches.model_inputs(batches.__getitems__([0, 1, 2, 3]), CPU)["pixel_values"]
    alone = [
        batches.model_inputs(batches.__getitems__([i]), CPU)["pixel_values"][0] for i in range(4)
    ]
    torch.testing.assert_close(mixed, torch.stack(alone), atol=1e-5, rtol=0)
