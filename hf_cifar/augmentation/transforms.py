"""The transforms of a batch of images between the image store and the model.

Evaluation is the backbone's own image processor, called on whole uint8 batches on the training
device. Training crops, mirrors and resizes the whole batch in two matrix products, each image with
its own parameters, and then uses the same processor's rescale and normalise. `auto_augment` comes
before that, random erasing after it.

Every random number is a function of seed, epoch and sample index (`counter_rng`).
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from hf_cifar.augmentation import augmix, auto_augment
from hf_cifar.augmentation.counter_rng import ERASING, uniform

# Random erasing: the box's share of the area, and its height divided by its width (torchvision's
# defaults; Zhong et al. 2020 go up to 0.4).
ERASED, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
_PROBE = (torch.arange(2 * 3 * 40 * 48) * 73 % 251).to(torch.uint8).reshape(2, 3, 40, 48)
log = logging.getLogger(__name__)


def _kernel(x: torch.Tensor, bicubic: bool) -> torch.Tensor:
    """Return the interpolation kernel of PIL and of torch's antialiased resize at x.

    Keys 1981 with a = -0.5 for bicubic, else the triangle of bilinear.
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
    """Return float32 [..., size, out], matrices whose column i mixes input pixels into output pixel
    i, antialiased where a box shrinks.

    start, length: float32 [...], boxes [start, start + length) in pixels of a side of `size`.
    flip: bool [...], whether the output is mirrored.
    """
    scale = (length / out)[..., None]
    spread = scale.clamp(min=1)
    i = torch.arange(out, device=start.device, dtype=torch.float32)
    centre = start[..., None] + (torch.where(flip[..., None], out - 1 - i, i) + 0.5) * scale
    # Only pixels within the kernel's reach have weights: 4 of 32 where 32 px become 224, 5 of 256
    # where 256 do.
    reach = 2 if bicubic else 1
    taps = math.ceil(2 * reach * max(1, size / out))
    first = (centre - reach * spread - 0.5).ceil()
    j = first[..., None, :] + torch.arange(taps, device=start.device)[:, None]
    weights = _kernel((j + 0.5 - centre[..., None, :]) / spread[..., None], bicubic) * (
        (j >= 0) & (j < size)
    )
    # With room for taps beyond the border, whose weights are zero.
    matrix = torch.zeros(*start.shape, size + 2 * taps, out, device=start.device)
    matrix.scatter_(-2, j.long() + taps, weights / weights.sum(-2, keepdim=True))
    return matrix[..., taps:-taps, :]


class Transforms:
    """The transforms of a run, for training and for evaluation. Picklable, for workers.

    processor: a transformers image processor with the torchvision backend, set to `image_size`.
    scale, ratio: of the random resized crop (Szegedy et al. 2015; torchvision's parameters);
        `scale` None keeps the whole image.
    flip: probability that an image is mirrored.
    policy: None, or name, number of operations and magnitude as `auto_augment.draw` takes them; of
        `augmix` only the name counts.
    mixtures: with `augmix`, None for a mixture in place of each image, or how many follow the image
        itself. A batch then holds all images as they are (cropped and mirrored), then their first
        mixtures, then their second, all views of an image with the same crop.
    erasing: probability that a box of the image is erased.
    schedule: (epoch, side in px) of training images from each epoch on, the first epoch 0; empty
        for `image_size` throughout.
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
        mixtures: int | None = None,
        erasing: float = 0.0,
        schedule: tuple[tuple[int, int], ...] = (),
        mixup: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.processor, self.image_size, self.seed = processor, image_size, seed
        self.scale, self.ratio, self.flip = scale, ratio, flip
        self.policy, self.erasing, self.schedule = policy, erasing, schedule
        self.mixtures, self.views = mixtures, 1 + (mixtures or 0)
        self.mixup, self.cutmix = mixup, cutmix
        self.bicubic = int(processor.resample) == 3
        self.whole = self._takes_batches()

    def _takes_batches(self) -> bool:
        """Return whether the processor's inner step gives for a batch what its call gives image by
        image, on a probe.
        """
        try:
            one_by_one = self.processor(images=_PROBE, return_tensors="pt")["pixel_values"]
            return torch.equal(self._batch(_PROBE), one_by_one)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            return False

    def check_device(self, device: torch.device) -> None:
        """Warn where the processor's resize on `device` differs from that on the CPU, which
        `pipeline` uses, by more than rounding: one step of 255.
        """
        on_cpu = self._process(_PROBE)
        there = self._process(_PROBE.to(device)).to(on_cpu.device)
        one_step = 1 / (255 * min(getattr(self.processor, "image_std", None) or [1.0]))
        if bool((there - on_cpu).abs().max() > 1.01 * one_step):
            log.warning(
                "%s: images resized on %s differ from those resized on the CPU, so `pipeline` on a"
                " CPU may give other answers",
                type(self.processor).__name__,
                device.type,
            )

    def _batch(self, images: torch.Tensor, **changes: Any) -> torch.Tensor:
        """Return the processor's result for a batch, by its inner step.

        Its call takes the batch apart, which costs 5 ms for 64 images of 32 px, as much as all
        other transforms.
        """
        processor = self.processor
        values = {name: getattr(processor, name, None) for name in processor._valid_kwargs_names}
        values |= {"disable_grouping": True, "return_tensors": None} | changes
        return processor._preprocess([images], **values)["pixel_values"][0]

    def _process(self, images: torch.Tensor, **changes: Any) -> torch.Tensor:
        if self.whole:
            return self._batch(images, **changes)
        return self.processor(images=images, return_tensors="pt", **changes)["pixel_values"]

    def evaluate(self, images: torch.Tensor) -> torch.Tensor:
        """Return the model's float32 [B, 3, S, S] for uint8 [B, 3, H, W], exactly as `pipeline`
        computes it for each image.
        """
        return self._process(images)

    def shrink(self, image: torch.Tensor) -> torch.Tensor:
        """Return uint8 [3, S, S] for uint8 [3, H, W]: the first half of `evaluate`, for images of
        several sizes.
        """
        steps = {"do_rescale": False, "do_normalize": False}
        if hasattr(self.processor, "include_top"):
            steps["include_top"] = False  # EfficientNet's would normalise after all
        return self.processor(images=image, return_tensors="pt", **steps)["pixel_values"][0]

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Return the model's float32 [B, 3, S, S] for float32 or uint8 [B, 3, S, S] in 0..255: the
        processor's rescale and normalise alone.
        """
        return self._process(images, do_resize=False, do_center_crop=False)

    def boxes(
        self, height: int, width: int, epoch: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (top, left) and (height, width) of each image's crop in px, float32 [2, B] each,
        and whether it is mirrored, bool [B].

        A box that does not fit is cut to the image, so that one draw is enough; torchvision draws
        again.
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
        """Return the side in px of the training images of an epoch."""
        return next(
            (side for start, side in reversed(self.schedule) if epoch >= start), self.image_size
        )

    def draw_policy(
        self,
        epoch: torch.Tensor,
        index: torch.Tensor,
        size: tuple[int, int],
        out: int | None = None,
        *,
        counted: bool = True,
    ) -> Any:
        """Return what `auto_augment` or `augmix` does to B images of `size`, (height, width) in px,
        of which squares of side `out` will be made, by default `image_size`; None without a policy.

        It is drawn on the host, where epoch and index, int64 [B], lie. counted: see
        `auto_augment.draw`.
        """
        if not self.policy:
            return None
        if self.policy[0] == "augmix":
            if self._mixes_after_crop(size, out):
                size = (out or self.image_size,) * 2
            count = self.mixtures or 1
            return augmix.draw(self.seed, epoch, index, size, count, counted=counted)
        return auto_augment.draw(*self.policy, self.seed, epoch, index, size, counted=counted)

    def _mixes_after_crop(self, size: tuple[int, int], out: int | None) -> bool:
        """Return whether `augmix` mixes the cropped squares, as in the paper, rather than whole
        pictures: it goes through every picture nine times, so that it should be small.
        """
        return size[0] * size[1] > (out or self.image_size) ** 2

    def each_view(self, values: torch.Tensor) -> torch.Tensor:
        """Return values [views x B, ...] in the order of a batch's views, for [B, ...]."""
        return values.repeat(self.views, *[1] * (values.ndim - 1)) if self.views > 1 else values

    def _mix(self, images: torch.Tensor, drawn: dict[str, Any]) -> torch.Tensor:
        """Return float32 [views x B, 3, H, W] for images in 0..255, uint8 or float32 [B, 3, H, W].

        Mixtures are made of whole grey levels; the images among the views stay as they are.
        """
        is_whole = images.dtype == torch.uint8
        mixed = augmix.mix(images if is_whole else images.round().to(torch.uint8), drawn)
        return torch.cat([images.float(), mixed]) if self.mixtures else mixed

    def augment(
        self,
        images: torch.Tensor,
        epoch: torch.Tensor,
        index: torch.Tensor,
        policy: Any = None,
        size: int | None = None,
    ) -> torch.Tensor:
        """Return float32 [views x B, 3, S, S] in 0..255 for uint8 [B, 3, H, W]: what `draw_policy`
        gave, then a random box of each image, mirrored or not.

        size: S, by default `image_size`.
        """
        height, width = images.shape[-2:]
        size = size or self.image_size
        if policy and self.policy and self.policy[0] == "augmix":
            if self._mixes_after_crop((height, width), size):
                return self._mix(self._crop(images, epoch, index, size), policy)
            images = self._mix(images, policy)
            epoch, index = self.each_view(epoch), self.each_view(index)
        elif policy:
            images = auto_augment.apply(images, policy)
        return self._crop(images, epoch, index, size)

    def _crop(
        self, images: torch.Tensor, epoch: torch.Tensor, index: torch.Tensor, size: int
    ) -> torch.Tensor:
        """Return float32 [B, 3, S, S] in 0..255, a random box of each image, mirrored or not.

        images: uint8 or float32 [B, 3, H, W]. size: S.
        """
        height, width = images.shape[-2:]
        start, length, flip = self.boxes(height, width, epoch, index)
        flips = torch.stack([torch.zeros_like(flip), flip])
        # One call for both axes where it can be: at 32 px, the number of calls is the cost.
        if height == width:
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
        """Return the model's float32 [views x B, 3, S, S] for what `augment` gave: normalised, and
        a box of some images erased, that is, set to the mean of all images.
        """
        pixels = self.normalize(images)
        if not self.erasing:
            return pixels
        erased = self.each_view(self.erased(pixels.shape[-1], epoch, index))
        return pixels.masked_fill_(erased[:, None], 0.0)

    def erased(self, size: int, epoch: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return bool [B, S, S], the pixels that random erasing takes.

        A box that does not fit is cut to the image, as a crop is.
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
        policy: Any = None,
        size: int | None = None,
    ) -> torch.Tensor:
        """Return the model's float32 [views x B, 3, S, S] for uint8 [B, 3, H, W], augmented.

        epoch, index: int64 [B]. policy: what `draw_policy` gave. size: S, by default `image_size`.
        """
        return self.finish(self.augment(images, epoch, index, policy, size), epoch, index)


def make_transforms(recipe: Any, backbone: Any) -> Transforms:
    """Return the transforms that a recipe asks for, around the processor of a `Backbone`."""
    scale = recipe.random_resized_crop_scale
    policy = recipe.auto_augment, recipe.randaugment_num_ops, recipe.randaugment_magnitude
    return Transforms(
        backbone.processor,
        backbone.image_size,
        scale=(scale[0], scale[1]) if scale else None,
        ratio=(recipe.random_resized_crop_ratio[0], recipe.random_resized_crop_ratio[1]),
        flip=recipe.horizontal_flip,
        policy=policy if recipe.auto_augment else None,
        mixtures=recipe.views_at_once - 1 if recipe.consistency_weight else None,
        erasing=recipe.random_erasing,
        schedule=tuple((epoch, side) for epoch, side in recipe.image_size_schedule or ()),
        mixup=recipe.mixup_alpha,
        cutmix=recipe.cutmix_alpha,
        seed=recipe.seed,
    )
