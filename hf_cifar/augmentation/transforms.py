"""What happens to a batch of images between the table and the model.

Evaluation is the backbone's own image processor, called on whole uint8 batches on the training
device. Training crops, mirrors and resizes the whole batch in two matrix products, each image with
its own parameters, and then goes through the same processor's rescale and normalise. What
`auto_augment` does comes before that, random erasing after it.

Every random number is a function of seed, epoch and sample index (`counters`).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from hf_cifar.augmentation import auto_augment
from hf_cifar.augmentation.counter_rng import ERASING, uniform

# Random erasing's share of the image's area and height to width (torchvision's defaults; Zhong et
# al. 2020 go up to 0.4).
ERASED, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)


def _kernel(x: torch.Tensor, bicubic: bool) -> torch.Tensor:
    """The interpolation kernels of PIL and of torch's antialiased resize (Keys 1981 with a = -0.5
    for bicubic).
    """
    x = x.abs()
    if not bicubic:
        return (1 - x).clamp(min=0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def resampling(
    start: torch.Tensor,
    length: torch.Tensor,
    flip: torch.Tensor,
    size: int,
    out: int,
    bicubic: bool,
) -> torch.Tensor:
    """float32 [..., size, out] for boxes [start, start + length) in pixels of a side `size`,
    float32 [...], mirrored where `flip`, bool [...]: column i of a matrix mixes input pixels into
    output pixel i; antialiased where a box shrinks.
    """
    scale = (length / out)[..., None]
    spread = scale.clamp(min=1)
    i = torch.arange(out, device=start.device, dtype=torch.float32)
    centre = start[..., None] + (torch.where(flip[..., None], out - 1 - i, i) + 0.5) * scale
    # Only the pixels within the kernel's reach are weighed: at 224 px from 32 these are 4 of 32,
    # from 256 px 5 of 256.
    reach = 2 if bicubic else 1
    taps = math.ceil(2 * reach * max(1, size / out))
    first = (centre - reach * spread - 0.5).ceil()
    j = first[..., None, :] + torch.arange(taps, device=start.device)[:, None]
    weights = _kernel((j + 0.5 - centre[..., None, :]) / spread[..., None], bicubic) * (
        (j >= 0) & (j < size)
    )
    # Room for taps beyond the border, which weigh nothing.
    matrix = torch.zeros(*start.shape, size + 2 * taps, out, device=start.device)
    matrix.scatter_(-2, j.long() + taps, weights / weights.sum(-2, keepdim=True))
    return matrix[..., taps:-taps, :]


class Transforms:
    """Both transforms of a run. Picklable, so that workers can hold it.

    processor: a transformers image processor with the torchvision backend, set to `image_size`.
    scale, ratio: of the random resized crop (Szegedy et al. 2015; torchvision's parameters);
    `scale` None keeps the whole.
    flip: chance of a mirror image.
    policy: None or the name, the number of operations and their magnitude as `auto_augment.draw`
    takes them.
    erasing: chance that a box of the image is erased.
    schedule: (epoch, side) of training images from each epoch on, the first epoch 0; empty for
    `image_size` throughout.
    mixup, cutmix: the alphas of `mixing.draw`.
    """

    def __init__(
        self,
        processor: Any,
        image_size: int,
        *,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.0,
        policy: tuple[str, int, int] | None = None,
        erasing: float = 0.0,
        schedule: tuple[tuple[int, int], ...] = (),
        mixup: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.processor, self.image_size, self.scale, self.ratio, self.flip, self.seed = (
            processor,
            image_size,
            scale,
            ratio,
            flip,
            seed,
        )
        self.policy, self.erasing, self.schedule, self.mixup, self.cutmix = (
            policy,
            erasing,
            schedule,
            mixup,
            cutmix,
        )
        self.bicubic = int(processor.resample) == 3
        self.whole = self._takes_batches()

    def _takes_batches(self) -> bool:
        """Whether this processor's inner step gives for a batch what its call gives image by image,
        on a probe.
        """
        probe = (torch.arange(2 * 3 * 40 * 48) * 73 % 251).to(torch.uint8).reshape(2, 3, 40, 48)
        try:
            return torch.equal(
                self._batch(probe),
                self.processor(images=probe, return_tensors="pt")["pixel_values"],
            )
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            return False

    def _batch(self, images: torch.Tensor, **changes: Any) -> torch.Tensor:
        """The processor on a batch at once. Its call takes the batch apart: 5 ms a batch of 64 at
        32 px, half of this file.
        """
        p = self.processor
        values = {name: getattr(p, name, None) for name in p._valid_kwargs_names}
        values |= {"disable_grouping": True, "return_tensors": None} | changes
        return p._preprocess([images], **values)["pixel_values"][0]

    def _process(self, images: torch.Tensor, **changes: Any) -> torch.Tensor:
        if self.whole:
            return self._batch(images, **changes)
        return self.processor(images=images, return_tensors="pt", **changes)["pixel_values"]

    def evaluate(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> the model's float32 [B, 3, S, S], exactly what `pipeline` computes
        for each image.
        """
        return self._process(images)

    def shrink(self, image: torch.Tensor) -> torch.Tensor:
        """One uint8 [3, H, W] -> uint8 [3, S, S], the first half of `evaluate`, for images that
        must be resized one by one.
        """
        return self.processor(
            images=image, do_rescale=False, do_normalize=False, return_tensors="pt"
        )["pixel_values"][0]

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """float32 or uint8 [B, 3, S, S] in 0..255 -> the model's float32, by the processor's
        rescale and normalise alone.
        """
        return self._process(images, do_resize=False, do_center_crop=False)

    def boxes(
        self, height: int, width: int, epoch: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(top, left) and (height, width) of each image's crop in pixels, float32 [2, B] each, and
        flip, bool [B].

        Where torchvision draws again when a box does not fit, the box is cut to the image here: one
        draw an image.
        """
        draws = uniform(self.seed, epoch, index, 5).T
        sides = torch.stack([torch.full_like(draws[0], side) for side in (height, width)])
        if self.scale is None:
            return torch.zeros_like(sides), sides, draws[4] < self.flip
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draws[0])
        low, high = (math.log(r) for r in self.ratio)
        ratio = (low + (high - low) * draws[1]).exp()
        length = torch.stack([area / ratio, area * ratio]).sqrt().minimum(sides)
        return (sides - length) * draws[2:4], length, draws[4] < self.flip

    def size_at(self, epoch: int) -> int:
        """Side in pixels of the training images of an epoch."""
        return next(
            (side for start, side in reversed(self.schedule) if epoch >= start), self.image_size
        )

    def draw_policy(
        self, epoch: torch.Tensor, index: torch.Tensor, size: tuple[int, int]
    ) -> list[dict[str, Any]]:
        """What `auto_augment` does to B images of `size` (height, width), drawn on the host, where
        epoch and index lie.
        """
        return auto_augment.draw(*self.policy, self.seed, epoch, index, size) if self.policy else []

    def augment(
        self,
        images: torch.Tensor,
        epoch: torch.Tensor,
        index: torch.Tensor,
        rounds: list[dict[str, Any]] | None = None,
        size: int | None = None,
    ) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, 3, S, S] in 0..255: the operations that `draw_policy`
        gave, then a random box of each image, mirrored or not. S: `size`, or `image_size`.
        """
        height, width = images.shape[-2:]
        size = size or self.image_size
        if rounds:
            images = auto_augment.apply(images, rounds)
        start, length, flip = self.boxes(height, width, epoch, index)
        flips = torch.stack([torch.zeros_like(flip), flip])
        if (
            height == width
        ):  # one call for both: at 32 px its cost is the number of small operations
            rows, columns = resampling(start, length, flips, height, size, self.bicubic)
        else:
            each = zip(start, length, flips, (height, width), strict=True)
            rows, columns = (resampling(*box, size, self.bicubic) for box in each)
        wide = images.float().flatten(1, 2) @ columns
        picture = rows.mT[:, None] @ wide.unflatten(1, images.shape[1:3])
        return picture.clamp_(0, 255)

    def finish(
        self, images: torch.Tensor, epoch: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """What `augment` gave -> the model's float32 [B, 3, S, S]: normalised, and a box of some
        images erased, which is the mean of all images.
        """
        pixels = self.normalize(images)
        if not self.erasing:
            return pixels
        return pixels.masked_fill_(self.erased(pixels.shape[-1], epoch, index)[:, None], 0.0)

    def erased(self, size: int, epoch: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """bool [B, S, S]: the pixels that random erasing takes. A box that does not fit is cut, as
        a crop is.
        """
        draws = uniform(self.seed, epoch, index, 5, ERASING)
        area = size * size * (ERASED[0] + (ERASED[1] - ERASED[0]) * draws[:, 1])
        low, high = (math.log(r) for r in ERASED_RATIO)
        ratio = (low + (high - low) * draws[:, 2]).exp()
        h, w = ((area * r).sqrt().round().clamp(1, size - 1) for r in (ratio, 1 / ratio))
        top, left = (
            ((size - side + 1) * d).floor() for side, d in ((h, draws[:, 3]), (w, draws[:, 4]))
        )
        place = torch.arange(size, device=draws.device)
        rows, columns = (
            (place >= a[:, None]) & (place < (a + b)[:, None]) for a, b in ((top, h), (left, w))
        )
        return rows[:, :, None] & columns[:, None] & (draws[:, 0] < self.erasing)[:, None, None]

    def train(
        self,
        images: torch.Tensor,
        epoch: torch.Tensor,
        index: torch.Tensor,
        rounds: list[dict[str, Any]] | None = None,
        size: int | None = None,
    ) -> torch.Tensor:
        """uint8 [B, 3, H, W], int64 [B], int64 [B] -> the model's float32 [B, 3, S, S], augmented."""
        return self.finish(self.augment(images, epoch, index, rounds, size), epoch, index)


def make_transforms(recipe: Any, backbone: Any) -> Transforms:
    """The transforms that a recipe asks for, around a `backbones.Backbone`'s own processor."""
    scale = recipe.random_resized_crop_scale
    policy = recipe.auto_augment, recipe.randaugment_num_ops, recipe.randaugment_magnitude
    return Transforms(
        backbone.processor,
        backbone.image_size,
        scale=(scale[0], scale[1]) if scale else None,
        ratio=(recipe.random_resized_crop_ratio[0], recipe.random_resized_crop_ratio[1]),
        flip=recipe.horizontal_flip,
        policy=policy if recipe.auto_augment else None,
        erasing=recipe.random_erasing,
        schedule=tuple((epoch, side) for epoch, side in recipe.image_size_schedule or ()),
        mixup=recipe.mixup_alpha,
        cutmix=recipe.cutmix_alpha,
        seed=recipe.seed,
    )
