"""Mixup and CutMix: which images are mixed, how much, and that labels follow the pixels."""

import numpy as np
import pytest
import torch
from helpers.waits import HostWaits, fake_cuda
from scipy import stats
from torch.nn import functional as F
from transformers import ViTImageProcessor

from hf_cifar.augmentation import mixing
from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.image_store import ImageFiles, ImageTable
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.recipe.load import load_recipe

CPU = torch.device("cpu")
N = 40
NAMES = list("abcdefghij")


class Pictures(ImageFiles):
    """Images of many sizes, made on the spot."""

    def __init__(self, images, labels):
        self.images, self.labels, self.label_names = images, labels, NAMES

    def read(self, row):
        return self.images[row]


def noise(n, height=32, width=32, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    )


def batches(images=None, training=True, **keys):
    labels = np.arange(N, dtype=np.int64) % 10
    table = images or ImageTable(noise(N).numpy(), labels, NAMES, "f", [])
    keys = {
        "scale": (0.4, 1.0),
        "flip": 0.5,
        "policy": ("randaugment", 2, 9),
        "erasing": 0.3,
        "seed": 4,
    } | keys
    t = Transforms(ViTImageProcessor(size={"height": 24, "width": 24}), 24, **keys)
    return ImageBatches(Split("train", table, np.arange(N), labels), t, training=training)


def inputs(source, tickets):
    return source.model_inputs(source.__getitems__(tickets), CPU)


def drawn(mixup, cutmix, n=5000, size=32, epoch=0):
    index = np.arange(n)
    return mixing.draw(mixup, cutmix, 3, np.full(n, epoch), index, n, size)


# ---- what is drawn ----


def test_the_partner_is_another_image_and_any_of_them():
    partner, _ = drawn(1.0, 0.0)
    assert partner.min() >= 0 and partner.max() < 5000 and (partner != np.arange(5000)).all()
    assert len(np.unique(partner)) > 3000  # 63 % of them, as draws with replacement give
    assert abs(np.corrcoef(partner, np.arange(5000))[0, 1]) < 0.05
    later, _ = drawn(1.0, 0.0, epoch=1)
    assert (later == partner).mean() < 0.01
    few = mixing.draw(1.0, 0.0, 0, np.zeros(2, int), np.arange(2), 2, 8)[0]
    assert few.tolist() == [1, 0]
    assert mixing.draw(1.0, 0.0, 0, np.zeros(1, int), np.zeros(1, int), 1, 8)[0].tolist() == [
        0
    ]  # there is no other


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 5.0])
def test_mixups_share_is_betas(alpha):
    _, plan = drawn(alpha, 0.0)
    share = plan["share"].numpy()
    assert stats.kstest(share, "beta", (alpha, alpha)).pvalue > 1e-3
    assert abs(share.mean() - 0.5) < 0.02 and torch.equal(plan["blend"], plan["share"])
    assert (plan["box"][:, 0] == plan["box"][:, 1]).all()


def test_the_smallest_alpha_still_gives_shares():
    _, plan = drawn(1e-4, 0.0, n=200)
    assert ((plan["share"] >= 0) & (plan["share"] <= 1)).all()


def test_cutmixs_share_is_the_area_that_stays():
    _, plan = drawn(0.0, 1.0)
    top, bottom, left, right = plan["box"].T
    assert (
        (top >= 0).all()
        and (top <= bottom).all()
        and (bottom <= 32).all()
        and (left >= 0).all()
        and (right <= 32).all()
    )
    area = (bottom - top) * (right - left)
    torch.testing.assert_close(plan["share"], (1 - area / 32**2).float())
    assert (plan["blend"] == 1).all()
    # A uniform share, and a box cut where it leaves the image: more of an image stays than leaves.
    assert 0.55 < plan["share"].mean() < 0.75
    inner = (top > 0) & (bottom < 32) & (left > 0) & (right < 32)
    assert ((bottom - top) == (right - left))[inner].all()  # squares, as the image is


def test_with_both_each_image_gets_one_of_them():
    _, plan = drawn(0.8, 1.0)
    cut = plan["blend"] == 1
    assert abs(cut.float().mean() - 0.5) < 0.03
    assert (plan["box"][~cut, 0] == plan["box"][~cut, 1]).all()
    assert stats.kstest(plan["share"][~cut].numpy(), "beta", (0.8, 0.8)).pvalue > 1e-3


# ---- what it does to images and labels ----


def test_mixup_is_the_weighted_mean_and_cutmix_a_box_of_the_other():
    images, partners = torch.ones(3, 3, 8, 8), torch.zeros(3, 3, 8, 8)
    plan = {
        "blend": torch.tensor([0.25, 1.0, 1.0]),
        "box": torch.tensor([[0, 0, 0, 0], [2, 5, 1, 8], [0, 0, 0, 0]]),
    }
    got = mixing.mix(torch.cat([images, partners]), plan)
    assert torch.allclose(got[0], torch.tensor(0.25)) and (got[2] == 1).all()
    assert (got[1, :, 2:5, 1:8] == 0).all() and got[1].sum() == 3 * (64 - 21)


def test_soft_targets_are_one_hot_labels_by_their_share():
    labels, partners, share = (
        torch.tensor([0, 3, 2]),
        torch.tensor([1, 3, 0]),
        torch.tensor([0.7, 0.2, 1.0]),
    )
    got = mixing.soft_targets(labels, partners, share, 4)
    want = F.one_hot(labels, 4) * share[:, None] + F.one_hot(partners, 4) * (1 - share[:, None])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)
    assert got[1].tolist() == [0, 0, 0, 1] and got[2].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("keys", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_batch_is_each_image_with_its_partner_as_both_would_be_alone(keys):
    source, plain = batches(**keys), batches()
    got = inputs(source, list(range(N)))
    alone = inputs(plain, list(range(N)))
    partner, plan = mixing.draw(
        keys.get("mixup", 0), keys.get("cutmix", 0), 4, np.zeros(N, int), np.arange(N), N, 24
    )
    want = mixing.mix(torch.cat([alone["pixel_values"], alone["pixel_values"][partner]]), plan)
    assert torch.equal(got["pixel_values"], want) and not torch.equal(want, alone["pixel_values"])
    targets = got["labels"]
    assert targets.dtype == torch.float32 and targets.shape == (N, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(N))
    first, second = torch.arange(N) % 10, torch.from_numpy(partner) % 10
    differ = first != second
    torch.testing.assert_close(targets[torch.arange(N), first][differ], plan["share"][differ])
    torch.testing.assert_close(targets[torch.arange(N), second][differ], 1 - plan["share"][differ])


def test_cutmixs_label_is_the_share_of_the_pixels():
    """Black images and white ones: the mean of a mixed one is the share of the white label."""
    labels = np.arange(N, dtype=np.int64) % 2
    table = ImageTable(
        (np.ones((N, 3, 32, 32)) * 255 * labels[:, None, None, None]).astype(np.uint8),
        labels,
        ["a", "b"],
        "",
        [],
    )
    t = Transforms(ViTImageProcessor(size={"height": 24, "width": 24}), 24, cutmix=1.0)
    got = inputs(
        ImageBatches(Split("train", table, np.arange(N), labels), t, training=True), list(range(N))
    )
    white = (got["pixel_values"].mean((1, 2, 3)) + 1) / 2
    torch.testing.assert_close(white, got["labels"][:, 1], atol=1e-5, rtol=0)
    assert ((white > 0.05) & (white < 0.95)).sum() > 5


def test_the_result_depends_on_no_batch():
    source = batches(mixup=0.8, cutmix=1.0)
    tickets = list(range(N, 2 * N))
    whole = inputs(source, tickets)
    on_device = batches(mixup=0.8, cutmix=1.0)
    on_device.resident = noise(N)
    order = np.random.default_rng(0).permutation(N)
    for other, pieces in (
        (source, [tickets]),
        (source, [tickets[i : i + 8] for i in range(0, N, 8)]),
        (source, [[t] for t in tickets]),
        (on_device, [tickets]),
    ):
        parts = [inputs(other, piece) for piece in pieces]
        for name in ("pixel_values", "labels"):
            assert torch.equal(torch.cat([p[name] for p in parts]), whole[name])
    mixed_up = inputs(source, [tickets[i] for i in order])
    assert torch.equal(mixed_up["pixel_values"], whole["pixel_values"][order])
    assert not torch.equal(inputs(source, list(range(N)))["pixel_values"], whole["pixel_values"])


def test_images_of_mixed_sizes_are_mixed_too():
    sizes = [(32, 32), (50, 20), (19, 70), (32, 32)] * 10
    images = Pictures(
        [noise(1, h, w, seed=i)[0] for i, (h, w) in enumerate(sizes)],
        np.arange(N, dtype=np.int64) % 10,
    )
    source = batches(images, mixup=1.0, cutmix=1.0)
    alone = [inputs(source, [i]) for i in range(N)]
    together = inputs(source, list(range(N)))
    torch.testing.assert_close(
        together["pixel_values"], torch.cat([a["pixel_values"] for a in alone]), atol=1e-5, rtol=0
    )
    assert torch.equal(together["labels"], torch.cat([a["labels"] for a in alone]))


def test_two_images_are_read_for_each_and_no_labels_are_mixed_in_evaluation():
    source = batches(mixup=1.0)
    batch = source.__getitems__([0, 1, 2])
    assert batch["images"].shape[0] == 6 and batch["labels"].tolist() == [
        0,
        1,
        2,
    ]  # the Trainer counts labels
    got = inputs(batches(training=False, mixup=1.0), [0, 1, 2])
    assert got["labels"].tolist() == [0, 1, 2] and torch.equal(
        got["pixel_values"], source.transforms.evaluate(noise(N)[:3])
    )


def test_channels_last_holds():
    plain = batches(mixup=1.0)
    source = ImageBatches(plain.split, plain.transforms, training=True, channels_last=True)
    assert inputs(source, [0, 1])["pixel_values"].is_contiguous(memory_format=torch.channels_last)


def test_mixing_copies_nothing_between_host_and_device():
    _, plan = drawn(1.0, 1.0, n=4)
    with fake_cuda():
        there = {k: torch.zeros(v.shape, dtype=v.dtype, device="cuda") for k, v in plan.items()}
        pixels, labels = (
            torch.zeros(8, 3, 32, 32, device="cuda"),
            torch.zeros(4, dtype=torch.int64, device="cuda"),
        )
        with HostWaits() as waits:
            assert mixing.mix(pixels, there).shape == (4, 3, 32, 32)
            assert mixing.soft_targets(labels, labels, there["share"], 10).shape == (4, 10)
    assert waits.seen == []


# ---- what is refused ----


@pytest.mark.parametrize(
    ("lines", "about"),
    [
        ("method: linear\nmixup_alpha: 0.8", "mixup_alpha: changes images in every epoch"),
        (
            "method: linear\nfeature_views: 4\ncutmix_alpha: 1",
            "cutmix_alpha: changes images in every epoch",
        ),
        (
            "method: partial\nfeature_views: 4\ncutmix_alpha: 1",
            "cutmix_alpha: changes images in every epoch",
        ),
        ("method: linear\nauto_augment: randaugment", "auto_augment: does nothing with one view"),
        (
            "method: partial\nfeature_views: 1\nrandom_erasing: 0.2",
            "random_erasing: does nothing with one view",
        ),
        ("mixup_alpha: -1", "mixup_alpha: must be at least 0"),
        (
            "auto_augment: randaug",
            "auto_augment: must be one of randaugment, trivialaugment, autoaugment",
        ),
        ("randaugment_magnitude: 31", "randaugment_magnitude: must be at most 30"),
        ("random_erasing: 1.5", "random_erasing: must be at most 1"),
    ],
)
def test_what_would_do_nothing_is_refused_in_one_line(tmp_path, lines, about):
    path = tmp_path / "recipe.yaml"
    path.write_text(lines + "\n")
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    assert about in str(caught.value) and "\n" not in str(caught.value)
