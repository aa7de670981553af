"""Features without a run: a backbone and images are enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_cifar.augmentation.transforms import Transforms, make_transforms
from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.image_cache import cache_folder
from hf_cifar.data.splits import Split
from hf_cifar.features.extract import compute_features
from hf_cifar.features.store import weights_fingerprint
from hf_cifar.models.load import Backbone, load_backbone
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training.precision import has_bf16, keep_freed_memory, set_weight_layout
from hf_cifar.training.progress import image_progress


@dataclass(frozen=True)
class FrozenBackbone:
    """A model that gives features and does not train.

    model: on its device. transforms: make its inputs. weights: its `weights_fingerprint`, which
    names its entries in the feature cache. bf16, channels_last: how it computes. batch_size: images
    at a time.
    """

    model: Any
    transforms: Transforms
    weights: str
    bf16: bool
    channels_last: bool
    batch_size: int = 128

    def features(self, split: Split, workers: int = 0) -> np.ndarray:
        """Return float32 [n, D], what the head is given for each image of a split.

        They are computed once; later calls map them from the cache.

        workers: processes that decode, for images of many sizes.
        """
        batches = ImageBatches(
            split, self.transforms, training=False, channels_last=self.channels_last
        )
        with image_progress(f"features of {split.name}", len(split), True) as bar:
            features = compute_features(
                self.model,
                batches,
                cache_folder(),
                views=1,
                bf16=self.bf16,
                batch_size=self.batch_size,
                weights=self.weights,
                workers=workers,
                progress=bar,
            )
        return features.values[0]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def freeze(
    model: nn.Module,
    transforms: Transforms,
    *,
    bf16: bool | None = None,
    channels_last: bool | None = None,
    batch_size: int = 128,
) -> FrozenBackbone:
    """Return a model, moved to the GPU if there is one, as a frozen backbone.

    bf16, channels_last: None takes what the hardware is built for. Unlike in training it is not
    measured, since two measurements may differ, and then nothing would be found in the cache.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    uses_bf16 = has_bf16(device) if bf16 is None else bf16
    images_last = uses_bf16 and convolutions > 1 if channels_last is None else channels_last
    model = model.eval().requires_grad_(False).to(device)
    set_weight_layout(model, device, images_last)
    return FrozenBackbone(
        model, transforms, weights_fingerprint(model), uses_bf16, images_last, batch_size
    )


def load_frozen(recipe: Recipe, label_names: list[str]) -> tuple[FrozenBackbone, Backbone]:
    """Return the backbone that a recipe names, frozen, and with its processor and licence as a run
    would save it.

    Only the recipe's model keys and those about precision and batch size matter.
    Raises UserError for a backbone that can't be had or does not fit the keys.
    """
    backbone = load_backbone(recipe, label_names)
    frozen = freeze(
        backbone.model,
        make_transforms(recipe, backbone),
        bf16=recipe.training["bf16"],
        channels_last=recipe.channels_last,
        batch_size=recipe.training["per_device_eval_batch_size"],
    )
    return frozen, backbone
