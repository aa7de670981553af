"""Heat maps of what an answer rests on: Grad-CAM (Selvaraju et al. 2017) by the package grad-cam.

A Space carries a copy of this file, so it imports nothing of this project.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn


class HeatMapLayer(NamedTuple):
    """The layer whose outputs a heat map is made from.

    name: of the module. grid: rows and columns of its outputs. form: "channels_first" of outputs
    [B, C, rows, columns], "channels_last" of [B, rows, columns, C], or "tokens" of [B, T, C], whose
    last rows * columns tokens are patches; class and register tokens come before them.
    """

    name: str
    grid: tuple[int, int]
    form: str


class HeatMaps:
    """Makes heat maps of a model's answers.

    model: an image classifier of transformers, in evaluation mode.
    """

    def __init__(self, model: Any, layer: HeatMapLayer) -> None:
        self._model, self._layer = _Logits(model), layer
        self._target = model.get_submodule(layer.name)

    def __call__(self, pixels: torch.Tensor, label: int) -> np.ndarray:
        """Return float32 [S, S] in 0 to 1: how much each place spoke for a class.

        pixels: float32 [1, 3, S, S] on the model's device, as its image processor makes them.
        label: number of the class. All is 0 where no place spoke for it.
        """
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        cam = GradCAM(self._model, [self._target], self.to_maps)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                # The weights need no gradient; the gradient of the layer's outputs begins here.
                inputs = pixels.detach().clone().requires_grad_()
                (heat,) = cam(inputs, [ClassifierOutputTarget(label)])
        finally:
            cam.activations_and_grads.release()
        return heat

    def to_maps(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs, or their gradients, as [B, C, rows, columns]."""
        if self._layer.form == "channels_first":
            return outputs
        if self._layer.form == "tokens":
            rows, columns = self._layer.grid
            outputs = outputs[:, -rows * columns :].unflatten(1, (rows, columns))
        return outputs.movedim(-1, 1)


class _Logits(nn.Module):
    """Gives the logits of a model whose outputs are objects."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).logits.float()


def seen_picture(processor: Any, image: Any) -> np.ndarray:
    """Return uint8 [S, S, 3]: what is left of a picture once the processor has resized and cropped
    it, before it normalises.

    image: a PIL image, or uint8 [3, H, W].
    """
    steps = {"do_rescale": False, "do_normalize": False}
    if hasattr(processor, "include_top"):
        steps["include_top"] = False  # EfficientNet's would normalise after all
    pixels = processor(images=image, return_tensors="pt", **steps)["pixel_values"][0].float()
    return pixels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def overlay(picture: np.ndarray, heat: np.ndarray, side: int = 448) -> np.ndarray:
    """Return uint8 [side, side, 3]: a picture, uint8 [S, S, 3], under its heat map, [S, S]."""
    import cv2
    from pytorch_grad_cam.utils.image import show_cam_on_image

    # Bicubic kernels overshoot where a map has a hard edge.
    shown = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)
    hot = np.clip(cv2.resize(heat, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)
    return show_cam_on_image(
        shown.astype(np.float32) / 255, hot, use_rgb=True, colormap=cv2.COLORMAP_TURBO
    )
