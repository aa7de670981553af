"""Corruptions: the authors' figures, their definitions where they leave nothing to chance, and the
same bits in any batch.
"""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from hf_cifar.augmentation import corruptions
from hf_cifar.augmentation.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, Draws, corrupt
from hf_cifar.augmentation.sampling import box_index, gaussian_blur, motion_blur, weigh, zoom
from hf_cifar.augmentation.spatter import distance_to
from hf_cifar.data.load import load_split
from hf_cifar.recipe.recipe import Recipe

# Mean and deviation, in grey levels, of the first 200 test images of the packaged sample after each
# corruption and severity, computed by the program that made CIFAR-10-C (see
# benchmarks/corruptions.py, which wrote them).
DEFINED = json.loads((Path(__file__).parent / "corruptions_defined.json").read_text())
MADE = [name for name in CORRUPTIONS if name != "frost"]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    split = load_split(Recipe(dataset_name="sample"), "test")
    batch = split.images.batch(split.rows[:200])
    assert isinstance(batch, torch.Tensor)
    return batch


def numbers(count: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + count)


def test_there_are_fifteen_and_four_more() -> None:
    assert len(BENCHMARK) == 15 and len(EXTRA) == 4 and len(CORRUPTIONS) == 19
    assert set(DEFINED) == set(CORRUPTIONS)


@pytest.mark.parametrize("name", MADE)
def test_means_and_deviations_are_those_of_the_definition(name: str, images: torch.Tensor) -> None:
    for severity in (1, 3, 5):
        pixels = corrupt(images, name, severity, numbers(len(images))).double()
        mean, deviation = DEFINED[name][str(severity)]
        assert pixels.mean().item() == pytest.approx(mean, abs=2.55)
        assert pixels.std(correction=0).item() == pytest.approx(deviation, abs=2.55)


@pytest.mark.parametrize("name", MADE)
def test_an_image_is_the_same_in_any_batch(name: str, images: torch.Tensor) -> None:
    whole = corrupt(images[:24], name, 4, numbers(24), seed=3)
    for part in (slice(0, 1), slice(5, 9), slice(11, 24)):
        again = corrupt(images[part], name, 4, torch.arange(24)[part], seed=3)
        assert torch.equal(again, whole[part])


def test_severities_seeds_and_images_have_noise_of_their_own(images: torch.Tensor) -> None:
    grey = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    first, second = corrupt(grey, "gaussian_noise", 1, numbers(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, corrupt(grey, "gaussian_noise", 1, numbers(2), seed=1)[0])
    noise = [
        corrupt(grey, name, severity, numbers(2)).float() - 128
        for name, severity in (("gaussian_noise", 1), ("gaussian_noise", 2), ("speckle_noise", 1))
    ]
    for one, other in ((0, 1), (0, 2)):
        both = torch.stack([noise[one].flatten(), noise[other].flatten()])
        assert abs(torch.corrcoef(both)[0, 1]) < 0.05


def test_jpeg_is_the_file_of_pillow(images: torch.Tensor) -> None:
    for severity, quality in enumerate((80, 65, 58, 50, 40), 1):
        file = io.BytesIO()
        picture = Image.fromarray(images[7].permute(1, 2, 0).numpy())
        picture.save(file, "JPEG", quality=quality)
        expected = np.array(Image.open(file))
        ours = corrupt(images[7:8], "jpeg_compression", severity, numbers(1, 7))[0]
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), expected)


def test_pixelate_is_the_box_filter_of_pillow(images: torch.Tensor) -> None:
    for severity, share in enumerate((0.95, 0.9, 0.85, 0.75, 0.65), 1):
        side = int(32 * share)
        ours = corrupt(images[:20], "pixelate", severity, numbers(20))
        for pixels, image in zip(ours, images[:20], strict=True):
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            small = picture.resize((side, side), Image.Resampling.BOX)
            expected = np.array(small.resize((32, 32), Image.Resampling.BOX))
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_glass_blur_is_the_loop_of_the_definition() -> None:
    """With the moves that we draw, pixel by pixel from the last one, as the authors wrote it."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (1, 3, 32, 32)).astype(np.uint8)
    level, rounds = 3, 2  # severity 4: sigma 0.25, two rounds
    draws = Draws(0, list(CORRUPTIONS).index("glass_blur") * 8 + level + 1, numbers(1))

    def blurred(pixels: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(pixels, (0.25, 0.25, 0), mode="nearest")

    x = np.uint8(blurred(image[0].transpose(1, 2, 0) / 255.0) * 255)
    for _ in range(rounds):
        moves = (draws.uniform(2, 32, 32)[0] < 0.5).numpy()
        for h in range(31, 1, -1):
            for w in range(31, 1, -1):
                dy, dx = -int(moves[0, h, w]), -int(moves[1, h, w])
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    expected = blurred(x / 255.0) * 255
    ours = corrupt(torch.from_numpy(image), "glass_blur", level + 1, numbers(1))[0]
    difference = ours.permute(1, 2, 0).numpy() - expected
    assert difference.min() > -1.01 and difference.max() < 0.01  # cut to whole numbers


def test_shot_noise_has_the_variance_of_photons() -> None:
    for level in (10, 100, 250):
        grey = torch.full((40, 3, 32, 32), level, dtype=torch.uint8)
        pixels = corrupt(grey, "shot_noise", 5, numbers(40)).double()
        # 50 photons at full brightness; values are cut to whole numbers, half a level on average.
        photons = level * 50 / 255
        if level < 200:  # brighter ones are cut at 255
            assert pixels.mean().item() == pytest.approx(level - 0.5, abs=0.5)
            assert pixels.var().item() == pytest.approx(
                photons * (255 / 50) ** 2, rel=0.06
            )  # whole numbers
        assert len(pixels.unique()) <= 52


def test_blurs_and_zooms_are_those_of_scipy(images: torch.Tensor) -> None:
    pixels = images[:2].float()
    for mode, sigma, truncate in (("nearest", 0.8, 4), ("reflect", 6.4, 3)):
        ours = gaussian_blur(pixels, sigma, mode, truncate)
        expected = ndimage.gaussian_filter(
            pixels.double().numpy(), (0, 0, sigma, sigma), mode=mode, truncate=truncate
        )
        assert np.allclose(ours.numpy(), expected, atol=1e-3)
    for factor in (1.03, 1.25, 2.25):
        cropped = int(np.ceil(32 / factor))
        top = (32 - cropped) // 2
        inside = pixels.double().numpy()[..., top : top + cropped, top : top + cropped]
        enlarged = ndimage.zoom(inside, (1, 1, factor, factor), order=1)
        first = (enlarged.shape[-1] - 32) // 2
        expected = enlarged[..., first : first + 32, first : first + 32]
        assert np.allclose(zoom(pixels, factor).numpy(), expected, atol=1e-3)


def test_a_motion_blur_without_an_angle_moves_along_the_row() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16, 20] = 255
    ours = motion_blur(image, 6, 1.5, torch.zeros(1, dtype=torch.float64))
    weights = np.exp(-(np.arange(13) ** 2) / (2 * 1.5**2))
    expected = np.zeros((32, 32))
    expected[16, 20 - np.arange(13)] = np.floor(255 * weights / weights.sum() + 0.5)
    assert np.array_equal(ours[0, 0].numpy(), expected)


def test_box_weights_sum_to_one_and_distances_are_those_of_a_chamfer_mask() -> None:
    for side, out in ((32, 20), (20, 32), (32, 30)):
        index, weights = box_index(side, out)
        assert np.allclose(weights.sum(1), 1)
        assert weigh(torch.ones(1, side), -1, index, weights).shape == (1, out)
    edges = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    edges[..., 5, 5] = True
    far = distance_to(edges)[0, 0]
    assert far[5, 9] == 4 and far[8, 8].item() == pytest.approx(3 * 1.4)
    assert far[7, 6].item() == pytest.approx(2.1969)


def test_pictures_of_other_shapes(images: torch.Tensor) -> None:
    wide = torch.cat([images[:2], images[2:4]], 3)[:, :, :31]
    for name in MADE:
        assert corrupt(wide, name, 5, numbers(2)).shape == (2, 3, 31, 64)


def test_frost_reads_the_photographs_of_an_installed_package(
    images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if corruptions.frost_folder() is None:
        assert "imagecorruptions" in corruptions.left_out(["fog", "frost"])["frost"]
    package = tmp_path / "imagecorruptions"
    (package / "frost").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('old numpy')")
    for number, name in enumerate(corruptions.FROST_FILES):
        Image.new("RGB", (400, 300), (40 * number, 100, 200)).save(package / "frost" / name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert corruptions.left_out(["frost"]) == {}
    black = torch.zeros(30, 3, 32, 32, dtype=torch.uint8)
    ours = corrupt(black, "frost", 5, numbers(30))
    assert set(ours[:, 1].flatten().tolist()) <= {44, 45} and ours[:, 2].min() >= 89
    assert len(ours[:, 0].unique()) > 3  # several photographs were drawn
