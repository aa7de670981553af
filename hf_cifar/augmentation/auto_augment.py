"""AutoAugment, RandAugment and TrivialAugment for whole batches, every image with its own
operations and magnitudes.

The policies and magnitudes are torchvision's. Each image's operations are drawn on the host and
travel with the batch. An operation runs once for all images that got it, whatever their magnitudes:
torchvision's own functions take one magnitude a call, and its affine ones and its sharpness copy a
few numbers to the device at each call, for which the host would wait.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import (
    AutoAugment,
    AutoAugmentPolicy,
    RandAugment,
    TrivialAugmentWide,
)
from torchvision.transforms.v2 import functional as tv

from hf_cifar.augmentation.counter_rng import POLICY, uniform

SPACES: dict[str, dict[str, Any]] = {
    "randaugment": RandAugment._AUGMENTATION_SPACE,
    "trivialaugment": TrivialAugmentWide._AUGMENTATION_SPACE,
    "autoaugment": AutoAugment._AUGMENTATION_SPACE
    | {"Identity": (lambda bins, height, width: None, False)},
}
BINS = {"randaugment": 31, "trivialaugment": 31, "autoaugment": 10}  # torchvision's
CIFAR10 = AutoAugment(AutoAugmentPolicy.CIFAR10)._policies
AFFINE = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
OPERATIONS = np.array(sorted({"Affine"}.union(*SPACES.values()) - set(AFFINE)))


@cache
def magnitudes(policy: str, height: int, width: int) -> np.ndarray:
    """Return float64 [operations, bins]: torchvision's magnitudes for images of this size.

    The operations are in the order of `SPACES`; those without a magnitude have zeros.
    """
    bins = BINS[policy]
    values = [magnitudes_of(bins, height, width) for magnitudes_of, _ in SPACES[policy].values()]
    return np.array([np.zeros(bins) if v is None else np.asarray(v, np.float64) for v in values])


def _choices(
    policy: str, num_ops: int, level: int, seed: int, epoch: torch.Tensor, index: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the operation, the bin of its magnitude, and whether the magnitude is negative where
    it has a sign: int, int and bool [rounds, B].
    """
    names = list(SPACES[policy])
    rounds = {"randaugment": num_ops, "trivialaugment": 1, "autoaugment": 2}[policy]
    draws = np.asarray(uniform(seed, epoch, index, 1 + 3 * rounds, POLICY)).T
    first, second, third = draws[1::3], draws[2::3], draws[3::3]
    if policy == "autoaugment":
        pairs = [CIFAR10[i] for i in (draws[0] * len(CIFAR10)).astype(int)]
        operation, probability, magnitude_bin = np.array(
            [[(names.index(name), p, bin or 0) for name, p, bin in pair] for pair in pairs]
        ).transpose(2, 1, 0)
        operation = np.where(first < probability, operation, names.index("Identity"))
        return operation.astype(int), magnitude_bin.astype(int), second < 0.5
    operation = (first * len(names)).astype(int)
    magnitude_bin = np.full_like(operation, level)
    if policy == "trivialaugment":
        magnitude_bin = (second * BINS[policy]).astype(int)
    return operation, magnitude_bin, third < 0.5


def draw(
    policy: str,
    num_ops: int,
    level: int,
    seed: int,
    epoch: torch.Tensor,
    index: torch.Tensor,
    size: tuple[int, int],
    *,
    counted: bool = True,
) -> list[dict[str, Any]]:
    """Return what `apply` does to B images: one entry a round, images sorted by operation.

    policy: `randaugment` (`num_ops` operations of magnitude `level`), `trivialaugment` or
        `autoaugment` (CIFAR-10's policy).
    epoch, index: int64 [B] on the host. size: (height, width) in px.
    counted: whether entries hold `counts`; without them they have one structure for every batch.

    An entry: counts, ((operation, number of images), ...); order, int64 [B], the images in that
    order; operation, int64 [B], the place in OPERATIONS of each one's operation; amount, float32
    [B, 2], the magnitude and what it lacks of one; theta, float32 [B, 2, 3], the affine maps.
    """
    names, values = np.array(list(SPACES[policy])), magnitudes(policy, *size)
    signed = np.array([has_sign for _, has_sign in SPACES[policy].values()])
    choices = _choices(policy, num_ops, level, seed, epoch, index)
    rounds = []
    for operation, magnitude_bin, negative in zip(*choices, strict=True):
        sign = np.where(signed[operation] & negative, -1, 1)
        plan = group(names[operation], values[operation, magnitude_bin] * sign, size)
        if not counted:
            del plan["counts"]
        rounds.append(plan)
    return rounds


def group(kinds: np.ndarray, magnitude: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Return one round of `draw`.

    kinds: torchvision's name of each image's operation, str [B]. magnitude: float64 [B].
    """
    function = np.where(np.isin(kinds, AFFINE), "Affine", kinds)
    order = np.argsort(function, kind="stable")
    kinds, magnitude, function = kinds[order], magnitude[order], function[order]
    amount = 1 + magnitude  # a factor: brightness, colour, contrast, sharpness
    amount = np.where(kinds == "Solarize", 255 * magnitude, amount)
    kept_bits = 256 - 2.0 ** (8 - np.trunc(magnitude))
    amount = np.where(kinds == "Posterize", kept_bits, amount)
    return {
        "counts": tuple((str(name), len(list(same))) for name, same in groupby(function)),
        "order": torch.from_numpy(order),
        "operation": torch.from_numpy(np.searchsorted(OPERATIONS, function)),
        "amount": torch.from_numpy(np.stack([amount, 1 - amount], 1).astype(np.float32)),
        "theta": torch.from_numpy(_theta(kinds, magnitude, size)),
    }


def _theta(kinds: np.ndarray, magnitude: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return float32 [B, 2, 3], from output pixels, counted from the centre, to the places where
    grid_sample looks.

    The formula is that of torchvision's `_get_inverse_affine_matrix`. Shears keep the upper left
    corner in place, other maps the centre.
    """
    height, width = size
    is_x, is_y = kinds == "ShearX", kinds == "ShearY"
    rotation = np.where(kinds == "Rotate", np.radians(-(magnitude % 360)), 0.0)
    shear_x, shear_y = (np.where(is_this, np.arctan(magnitude), 0.0) for is_this in (is_x, is_y))
    cx, cy = (np.where(is_x | is_y, -0.5 * side, 0.0) for side in (width, height))
    tx, ty = (
        np.where(kinds == name, np.trunc(magnitude), 0.0) for name in ("TranslateX", "TranslateY")
    )
    a = np.cos(rotation - shear_y) / np.cos(shear_y)
    b = -(a * np.tan(shear_x) + np.sin(rotation))
    c = np.sin(rotation - shear_y) / np.cos(shear_y)
    d = np.cos(rotation) - c * np.tan(shear_x)
    x = np.stack([d, -b, cx - d * (cx + tx) + b * (cy + ty)], 1).astype(np.float32) / np.float32(
        0.5 * width
    )
    y = np.stack([-c, a, cy + c * (cx + tx) - a * (cy + ty)], 1).astype(np.float32) / np.float32(
        0.5 * height
    )
    return np.stack([x, y], 1)


def apply(
    images: torch.Tensor,
    rounds: list[dict[str, Any]],
    *,
    functions: Collection[str] = tuple(OPERATIONS),
    mode: str = "nearest",
) -> torch.Tensor:
    """Return uint8 [B, 3, H, W] after the operations of `rounds`.

    rounds: what `draw` gave, on the device of the images. functions: those of OPERATIONS that may
    be in them. mode: of the affine maps' interpolation, as in grid_sample.
    """
    images = images.clone()
    for plan in rounds:
        if "counts" not in plan:
            images = _run_all_operations(images, plan, functions, mode)
            continue
        start = 0
        for name, count in plan["counts"]:
            here, start = slice(start, start + count), start + count
            if name != "Identity":
                rows = plan["order"][here]
                amount, rest = plan["amount"][here].T[..., None, None, None]
                images.index_copy_(
                    0, rows, _operate(name, images[rows], amount, rest, plan["theta"][here], mode)
                )
    return images


def _run_all_operations(
    images: torch.Tensor, plan: dict[str, Any], functions: Collection[str], mode: str
) -> torch.Tensor:
    """Return uint8 [B, 3, H, W] after one round: every operation runs on all images, and its result
    stays where it was drawn.

    It is more work than an operation for its own images, but the same for every batch, so that a
    GPU can do it in a few kernels.
    """
    sorted_images = images[plan["order"]]
    amount, rest = plan["amount"].T[..., None, None, None]
    results = sorted_images
    for place, name in enumerate(OPERATIONS):
        if name != "Identity" and name in functions:
            changed = _operate(str(name), sorted_images, amount, rest, plan["theta"], mode)
            is_drawn = (plan["operation"] == place)[:, None, None, None]
            results = torch.where(is_drawn, changed, results)
    return torch.empty_like(images).index_copy_(0, plan["order"], results)


def _operate(
    name: str,
    x: torch.Tensor,
    amount: torch.Tensor,
    rest: torch.Tensor,
    theta: torch.Tensor,
    mode: str,
) -> torch.Tensor:
    match name:
        case "Affine":
            return _affine(x, theta, mode)
        case "Brightness":
            return (x * amount).clamp_(0, 255).to(torch.uint8)
        case "Color":
            return _blend(x, _gray(x), amount, rest)
        case "Contrast":
            return _blend(x, _gray(x).mean((1, 2, 3), keepdim=True), amount, rest)
        case "Sharpness":
            return _sharpen(x, rest)
        case "Posterize":
            return x & amount.to(torch.uint8)
        case "Solarize":
            return torch.where(x >= amount, ~x, x)
        case "AutoContrast":
            return tv.autocontrast(x)
        case "Equalize":
            return tv.equalize(x)
        case "Invert":
            return tv.invert(x)
        case _:
            raise ValueError(name)


def _affine(x: torch.Tensor, theta: torch.Tensor, mode: str) -> torch.Tensor:
    height, width = x.shape[-2:]
    across, down = (
        torch.linspace((1 - n) * 0.5, (n - 1) * 0.5, n, device=x.device) for n in (width, height)
    )
    by_x, by_y, shift = theta[:, None, None].unbind(-1)
    grid = across[:, None] * by_x + down[:, None, None] * by_y + shift
    moved = F.grid_sample(x.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8)


def _gray(x: torch.Tensor) -> torch.Tensor:
    """Return float32 [B, 1, H, W], whole numbers: torchvision's luma (ITU-R 601-2)."""
    r, g, b = x.unbind(1)
    return r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114).floor_()[:, None]


def _blend(
    x: torch.Tensor, other: torch.Tensor, amount: torch.Tensor, rest: torch.Tensor
) -> torch.Tensor:
    return (x * amount).addcmul_(other, rest).clamp_(0, 255).to(torch.uint8)


def _sharpen(x: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Return images moved away from their 3 x 3 means, whose middle weighs five times; the border
    stays.
    """
    if min(x.shape[-2:]) <= 2:
        return x
    kernel = torch.full((3, 1, 3, 3), 1 / 13, device=x.device)
    kernel[:, :, 1, 1].fill_(5 / 13)
    sharp = x.float()
    inside = sharp[..., 1:-1, 1:-1]
    blurred = F.conv2d(sharp, kernel, groups=3).round_()
    inside.addcmul_(blurred.sub_(inside), rest)
    return sharp.clamp_(0, 255).to(torch.uint8)
