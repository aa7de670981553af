"""The corruptions of Hendrycks and Dietterich (2019) with CIFAR-10-C's constants, in batches.

Fifteen corruptions make up the benchmark, and four more were published beside it. Each has five
severities. The constants were chosen for pictures of 32 px. The definitions are those of the
program that made CIFAR-10-C, as it computes them: its glass blur copies pixels, because the swap
that it writes reads a value that was overwritten before. Frost needs six photographs of ice, which
are not shipped: they are read from the package `imagecorruptions` where that is installed.

All random numbers come from `counter_rng`, by corruption, severity and number of the picture, so a
picture is corrupted in the same way in any batch.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch

from hf_cifar.augmentation import spatter
from hf_cifar.augmentation.counter_rng import uniform
from hf_cifar.augmentation.sampling import (
    box_index,
    correlate,
    gaussian_blur,
    look_up,
    motion_blur,
    weigh,
    zoom,
    zoom_index,
)
from hf_cifar.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
FROST_FILES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")


class Draws:
    """The random numbers of one corruption at one severity, for B pictures.

    index: int64 [B], the pictures' numbers. stream: number of the corruption and its severity.
    """

    def __init__(self, seed: int, stream: int, index: torch.Tensor) -> None:
        self.seed, self.index = seed, index
        self.stream = torch.full_like(index, stream)
        self.used = 0

    def uniform(self, *shape: int) -> torch.Tensor:
        """Return float32 [B, *shape] in [0, 1)."""
        count = int(np.prod(shape))
        values = uniform(self.seed, self.stream, self.index, count, self.used)
        self.used += count
        return values.view(-1, *shape)

    def between(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Return float32 [B, *shape] in [low, high)."""
        return self.uniform(*shape) * (high - low) + low

    def normal(self, *shape: int) -> torch.Tensor:
        """Return float32 [B, *shape] of mean 0 and deviation 1."""
        middle = self.uniform(*shape).double() + 2.0**-25  # never 0
        return torch.special.ndtri(middle).float()


def corrupt(
    images: torch.Tensor, name: str, severity: int, index: torch.Tensor, seed: int = 0
) -> torch.Tensor:
    """Return uint8 [B, 3, H, W], corrupted.

    images: uint8 [B, 3, H, W]. name: a key of `CORRUPTIONS`. severity: 1 to 5. index: int64 [B] on
    the device of the images, the number of each picture, from which its random numbers come.

    Raises UserError for frost where its photographs are absent.
    """
    number = list(CORRUPTIONS).index(name)
    draws = Draws(seed, number * 8 + severity, index)
    result = CORRUPTIONS[name](images.float(), severity - 1, draws)
    return result.clamp_(0, 255).to(torch.uint8)  # cut to whole numbers, as the published files are


def left_out(names: list[str]) -> dict[str, str]:
    """Return those of the corruptions that can't be made here, with the reason."""
    if "frost" in names and frost_folder() is None:
        reason = "its photographs are not installed; `pip install --no-deps imagecorruptions`"
        return {"frost": reason}
    return {}


# ---- noise; here and below, images are float32 [B, 3, H, W] from 0 to 255 ----


def gaussian_noise(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[level]
    return images + draws.normal(*images.shape[1:]) * (255 * deviation)


def shot_noise(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    photons = (500, 250, 100, 75, 50)[level]
    steps, counts = _poisson_steps(photons)
    brightness = images.double()
    place = brightness + draws.uniform(*images.shape[1:]).double() + 2.0**-25
    table = torch.from_numpy(steps).to(images.device)
    steps_below = torch.searchsorted(table, place.flatten()).view_as(place)
    photons_seen = steps_below - brightness.long() * counts
    return photons_seen.float() * (255 / photons)


@cache
def _poisson_steps(photons: int) -> tuple[np.ndarray, int]:
    """Return the steps of the Poisson distributions of all 256 brightnesses, brightness b's shifted
    by b, so that one sorted table answers for all of them; and how many steps each has.
    """
    from scipy.stats import poisson

    means = np.arange(256)[:, None] * (photons / 255)
    counts = int(poisson.isf(1e-9, photons)) + 2
    steps = np.arange(256)[:, None] + poisson.cdf(np.arange(counts), means)
    steps[:, -1] = np.arange(256) + 1
    return steps.ravel(), counts


def impulse_noise(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[level]
    chance = draws.uniform(*images.shape[1:])
    images = images.masked_fill(chance < share / 2, 0)
    return images.masked_fill_((chance >= share / 2) & (chance < share), 255)


def speckle_noise(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    deviation = (0.06, 0.1, 0.12, 0.16, 0.2)[level]
    return images + images * draws.normal(*images.shape[1:]) * deviation


# ---- blur ----


def defocus_blur(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]
    return correlate(images, _disk(radius, sigma))


def _disk(radius: float, sigma: float) -> np.ndarray:
    """Return float64 [5, 5] that sums to one: a disk, softened by 3 x 3 Gaussian weights."""
    from scipy.ndimage import convolve

    place = np.arange(-2, 3)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    weights = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    soft = np.outer(weights, weights)
    return convolve(disk / disk.sum(), soft / soft.sum(), mode="constant")


def glass_blur(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[level]
    height, width = images.shape[-2:]
    images = gaussian_blur(images, sigma).floor()
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    for _ in range(rounds):
        # Every pixel but those of the first two rows and columns becomes a copy of itself or of the
        # one before it, in each direction at even chance. The definition goes from the last pixel
        # to the first, so it never copies one that it has changed.
        moves = (draws.uniform(2, height, width) < 0.5).long()
        moves[:, :, :2] = 0
        moves[:, :, :, :2] = 0
        place = (rows[:, None] - moves[:, 0]) * width + columns - moves[:, 1]
        index = place.flatten(1)[:, None].expand(-1, images.shape[1], -1)
        images = images.flatten(2).gather(2, index).view_as(images)
    return gaussian_blur(images, sigma)


def motion_blurred(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[level]
    return motion_blur(images, radius, sigma, draws.between(-45, 45, 1)[:, 0].double())


def zoom_blur(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[level], 0.01)
    # Factors that are the same in whole pixels are computed once.
    alike: dict[tuple[bytes, bytes], list[float]] = {}
    for factor in factors.tolist():
        key = tuple(zoom_index(side, factor)[1].tobytes() for side in images.shape[-2:])
        alike.setdefault((key[0], key[1]), []).append(factor)
    total = images.clone()
    for group in alike.values():
        total.add_(zoom(images, group[0]), alpha=len(group))
    return total / (len(factors) + 1)


def gaussian_blurred(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    return gaussian_blur(images, (0.4, 0.6, 0.7, 0.8, 1)[level])


# ---- weather ----


def snow(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    mean, deviation, factor, least, radius, sigma, share = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[level]
    flakes = draws.normal(1, *images.shape[-2:]) * deviation + mean
    flakes = zoom(flakes, factor)
    flakes = torch.where(flakes < least, 0.0, flakes.clamp(max=1) * 255).floor()
    direction = draws.between(-135, -45, 1)[:, 0].double()
    flakes = motion_blur(flakes, radius, sigma, direction)
    red, green, blue = images.split(1, dim=1)
    grey = red * 0.299 + green * 0.587 + blue * 0.114
    pale = torch.maximum(images, grey * 1.5 + 0.5 * 255)
    return images * share + pale * (1 - share) + flakes + flakes.flip(2, 3)


def fog(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    strength, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[level]
    height, width = images.shape[-2:]
    haze = plasma(draws, max(height, width), decay)[:, None, :height, :width]
    most = images.amax((1, 2, 3), keepdim=True)
    return (images + haze * (255 * strength)) * (most / (most + 255 * strength))


def plasma(draws: Draws, side: int, decay: float) -> torch.Tensor:
    """Return float32 [B, M, M] from 0 to 1, clouds by the diamond-square algorithm.

    M: the power of two from `side` on. decay: how much the noise shrinks each time that its grid is
    halved.
    """
    side = 1 << (side - 1).bit_length()
    field = torch.zeros(len(draws.index), side, side, device=draws.index.device)
    step, noise = side, 100.0

    def mean(total: torch.Tensor) -> torch.Tensor:
        amount = noise * noise  # the definition multiplies by the noise twice
        return total / 4 + draws.between(-amount, amount, *total.shape[1:])

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = mean(pairs + pairs.roll(-1, 2))
        middles = field[:, half::step, half::step]
        above = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        beside = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        field[:, ::step, half::step] = mean(above)
        field[:, half::step, ::step] = mean(beside)
        step, noise = half, noise / decay
    field -= field.amin((1, 2), keepdim=True)
    return field / field.amax((1, 2), keepdim=True)


def frost(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    share, strength = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[level]
    folder = frost_folder()
    if folder is None:
        raise UserError(f"frost: {left_out(['frost'])['frost']}")
    textures = _frost_textures(folder)
    height, width = images.shape[-2:]
    which, top, left = draws.uniform(3).T.cpu().numpy()
    crops = []
    for number, down, across in zip(which, top, left, strict=True):
        texture = textures[int(number * len(textures))]
        room = [size - side for size, side in zip(texture.shape[1:], (height, width), strict=True)]
        if min(room) < 1:
            raise UserError(
                f"frost: its photographs are smaller than these pictures ({height} x {width} px);"
                " leave it out with --corruptions"
            )
        row, column = int(down * room[0]), int(across * room[1])
        crops.append(texture[:, row : row + height, column : column + width])
    ice = torch.stack(crops).to(images.device).float()
    return images * share + ice * strength


def frost_folder() -> Path | None:
    """Return the folder of frost's photographs in an installed `imagecorruptions`, or None.

    The package is not imported: with today's numpy it fails.
    """
    package = importlib.util.find_spec("imagecorruptions")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "frost"
    return folder if all((folder / name).is_file() for name in FROST_FILES) else None


@cache
def _frost_textures(folder: Path) -> list[torch.Tensor]:
    """Return the photographs at a fifth of their size, uint8 [3, H, W] each."""
    from PIL import Image

    textures = []
    for name in FROST_FILES:
        with Image.open(folder / name) as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        small = torch.nn.functional.interpolate(
            pixels[None].float(), scale_factor=0.2, mode="bilinear", align_corners=False
        )
        textures.append(small[0].round().to(torch.uint8))
    return textures


def spattered(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    mean, deviation, sigma, least, strength, is_mud = (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    )[level]
    layer = draws.normal(1, *images.shape[-2:]) * deviation + mean
    layer = gaussian_blur(layer, sigma)
    layer = torch.where(layer < least, 0.0, layer)
    drops = spatter.mud if is_mud else spatter.water
    return drops(images / 255, layer, strength) * 255


# ---- colour ----


def brightness(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    # In hue, saturation and value, with the value raised: all three colours grow alike.
    value = images.amax(1, keepdim=True)
    raised = (value + 255 * (0.05, 0.1, 0.15, 0.2, 0.3)[level]).clamp_(max=255)
    return torch.where(value > 0, images * (raised / value), raised)


def contrast(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    share = (0.75, 0.5, 0.4, 0.3, 0.15)[level]
    # Sums of whole numbers are exact, in whatever order they are added.
    mean = images.long().sum((2, 3), keepdim=True).float() / images[0, 0].numel()
    return (images - mean) * share + mean


def saturate(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    factor, shift = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[level]
    # A colour lies below the largest of the three by a distance that the saturation scales.
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    saturation = torch.where(value > 0, (value - least) / value, 0.0)
    changed = (saturation * factor + shift).clamp_(0, 1)
    scaled = value - (value - images) * (changed / saturation)
    # Grey has the hue of red.
    reddened = value * (1 - changed * images.new_tensor([0, 1, 1])[:, None, None])
    return torch.where(saturation > 0, scaled, reddened)


# ---- digital ----


def elastic_transform(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    amount, sigma, jitter = (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[level]
    height, width = images.shape[-2:]
    side = min(height, width)
    row = torch.arange(height, device=images.device, dtype=torch.float32)[:, None]
    column = torch.arange(width, device=images.device, dtype=torch.float32)
    # Three corners of a square move, each by up to `jitter` of the side.
    moves = draws.between(-jitter * side, jitter * side, 3, 2)
    x, y = _affine_places(moves, row, column, side)
    images = look_up(images, y, x, "mirror")
    bend = draws.between(-1, 1, 2, height, width)
    bend = gaussian_blur(bend, sigma * side, "reflect", truncate=3) * (amount * side)
    return look_up(images, row + bend[:, 1], column + bend[:, 0], "reflect")


def _affine_places(
    moves: torch.Tensor, row: torch.Tensor, column: torch.Tensor, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where each pixel comes from, x and y, float32 [B, H, W], if three corners of a square
    in the middle, which are a third of a side from it, move by `moves`, float32 [B, 3, 2] (x, y).
    """
    centre = [len(column) // 2, len(row) // 2]
    reach = side // 3
    corners = moves.new_tensor(centre) + reach * moves.new_tensor([[1, 1], [1, -1], [-1, -1]])
    moved = corners + moves
    # The map takes corner 1 to its new place, and the edges (0, 2 reach) and (2 reach, 0) to these.
    down, across = moved[:, 0] - moved[:, 1], moved[:, 1] - moved[:, 2]
    offset_x, offset_y = (
        place - moved[:, 1, axis, None, None] for axis, place in enumerate((column, row))
    )
    area = (across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0])[:, None, None]
    a, b, c, d = (part[:, None, None] for part in (*across.T, *down.T))
    along = (offset_x * d - offset_y * c) / area
    below = (offset_y * a - offset_x * b) / area
    return corners[1, 0] + 2 * reach * along, corners[1, 1] + 2 * reach * below


def pixelate(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[level]
    sides = images.shape[-2:]
    small = [max(1, int(side * share)) for side in sides]
    for before, after in ((sides, small), (small, sides)):
        for axis in (-1, -2):
            images = weigh(images, axis, *box_index(before[axis], after[axis]))
            images = images.add_(0.5).floor_()
    return images


def jpeg_compression(images: torch.Tensor, level: int, draws: Draws) -> torch.Tensor:
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[level]
    pictures = []
    for pixels in images.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality)
        with Image.open(file) as picture:
            pictures.append(np.array(picture))
    decoded = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return decoded.to(images.device).float()


Corruption = Callable[[torch.Tensor, int, Draws], torch.Tensor]
# The fifteen of the benchmark in its order, then the four that were published beside it. A name's
# place is part of its random numbers.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blurred,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blurred,
    "spatter": spattered,
    "saturate": saturate,
}
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
BENCHMARK = tuple(name for name in CORRUPTIONS if name not in EXTRA)
