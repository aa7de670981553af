"""AugMix (Hendrycks et al. 2020) for whole batches: a picture mixed with chains of operations.

Each of `WIDTH` chains applies one to `DEPTH` operations to the picture. Their results are averaged
with weights from a Dirichlet distribution, and the average is mixed with the picture itself by a
share from a Beta distribution, both with alpha 1. The operations are the paper's, which leaves out
brightness, colour, contrast and sharpness because corrupted test sets have them; their arithmetic
is torchvision's. Strengths are the paper's, drawn without steps, and so is bilinear interpolation.

All chains of all images of a batch go through the operations of `auto_augment` at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_cifar.augmentation import auto_augment
from hf_cifar.augmentation.counter_rng import POLICY, uniform

WIDTH, DEPTH = 3, 3  # chains, and most operations in one
SEVERITY = (0.1, 3.0)  # range of an operation's strength, of 10
OPERATIONS = np.array(
    [
        "AutoContrast",
        "Equalize",
        "Posterize",
        "Rotate",
        "ShearX",
        "ShearY",
        "Solarize",
        "TranslateX",
        "TranslateY",
    ]
)
FUNCTIONS = ("Affine", "AutoContrast", "Equalize", "Posterize", "Solarize")  # of `auto_augment`
DRAWS_OF_CHAIN = 1 + 3 * DEPTH  # its depth; an operation, a strength and a sign each time
DRAWS = 1 + WIDTH + WIDTH * DRAWS_OF_CHAIN  # of one mixture
_HALF_STEP = 2.0**-25  # keeps a draw, a multiple of 2^-24 in [0, 1), away from 0


def magnitudes(kinds: np.ndarray, strength: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return float64 [...], what torchvision calls the magnitude, without its sign.

    kinds: names among OPERATIONS, str [...]. strength: float64 [...], 0 to 1. size: (height, width)
    in px.
    """
    height, width = size
    by_name = {
        "Rotate": np.trunc(30 * strength),  # degrees
        "ShearX": 0.3 * strength,
        "ShearY": 0.3 * strength,
        "TranslateX": width / 3 * strength,  # px, cut to whole ones later
        "TranslateY": height / 3 * strength,
        "Posterize": 4 - np.trunc(4 * strength),  # bits that are left
        "Solarize": (256 - np.trunc(256 * strength)) / 255,  # of the range that is not inverted
    }
    result = np.zeros(kinds.shape)
    for name, values in by_name.items():
        result = np.where(kinds == name, values, result)
    return result


def draw(
    seed: int,
    epoch: torch.Tensor,
    index: torch.Tensor,
    size: tuple[int, int],
    mixtures: int,
    *,
    counted: bool = True,
) -> dict[str, Any]:
    """Return what `mix` does to B images of `size`, (height, width) in px.

    epoch, index: int64 [B] on the host. mixtures: how many to make of each image. counted: see
    `auto_augment.draw`.

    rounds: `DEPTH` rounds as `auto_augment.apply` takes them, for mixtures x WIDTH x B images.
    shares: float32 [mixtures, 1 + WIDTH, B], of the image itself and of each of its chains.
    """
    draws = np.asarray(uniform(seed, epoch, index, mixtures * DRAWS, POLICY), np.float64)
    draws = draws.T.reshape(mixtures, DRAWS, -1)
    mixed, weights, chains = np.split(draws, [1, 1 + WIDTH], axis=1)
    # Exponential numbers divided by their sum have the Dirichlet distribution with alpha 1, and a
    # uniform number has the Beta distribution with both alphas 1.
    weights = -np.log(weights + _HALF_STEP)
    weights = mixed * weights / weights.sum(1, keepdims=True)
    shares = np.concatenate([1 - mixed, weights], axis=1).astype(np.float32)
    chains = chains.reshape(mixtures, WIDTH, DRAWS_OF_CHAIN, -1).transpose(2, 0, 1, 3)
    depth = 1 + (chains[0] * DEPTH).astype(int)
    low, high = SEVERITY
    rounds = []
    for number in range(DEPTH):
        which, level, sign = chains[1 + 3 * number : 4 + 3 * number]
        kinds = OPERATIONS[(which * len(OPERATIONS)).astype(int)]
        kinds = np.where(number < depth, kinds, "Identity")
        magnitude = magnitudes(kinds, (low + (high - low) * level) / 10, size)
        negative = np.isin(kinds, auto_augment.AFFINE) & (sign < 0.5)
        signed = np.where(negative, -magnitude, magnitude)
        plan = auto_augment.group(kinds.ravel(), signed.ravel(), size)
        if not counted:
            del plan["counts"]
        rounds.append(plan)
    return {"rounds": rounds, "shares": torch.from_numpy(shares)}


def mix(images: torch.Tensor, drawn: dict[str, Any]) -> torch.Tensor:
    """Return float32 [mixtures x B, 3, H, W] in 0..255 for uint8 [B, 3, H, W]: the first mixture of
    all images, then the second.

    drawn: what `draw` gave, on the device of the images.
    """
    mixtures, images_and_chains, count = drawn["shares"].shape
    chains = images.repeat(mixtures * (images_and_chains - 1), 1, 1, 1)
    chains = auto_augment.apply(chains, drawn["rounds"], functions=FUNCTIONS, mode="bilinear")
    share_of_image, *each_chain = drawn["shares"][..., None, None, None].unbind(1)
    total = images * share_of_image
    # A sum of products in a fixed order, each rounded by itself: the same bits in every batch.
    for number, share in enumerate(each_chain):
        total = total + chains.unflatten(0, (mixtures, -1, count))[:, number] * share
    return total.flatten(0, 1)
