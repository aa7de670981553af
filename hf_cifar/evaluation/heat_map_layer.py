"""Which layer of a model its heat maps are made from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.evaluation.heat_maps import HeatMapLayer
from hf_cifar.models.structure import blocks

FEWEST_CELLS = 4  # rows and columns; a coarser map says little
MOST_HALVINGS = 6  # of a patch grid, from stage to stage


def check_grad_cam(command: str) -> None:
    """Raise UserError, which begins with `command`, unless the package grad-cam is installed."""
    try:
        import pytorch_grad_cam  # noqa: F401
    except ImportError:
        raise UserError(
            f"{command}: needs the package grad-cam; install it with `pip install 'hf-cifar[demo]'`"
        ) from None


def choose_layer(model: Any, side: int) -> HeatMapLayer:
    """Return the layer that heat maps of a model for pictures of `side` pixels are made from.

    It is in the last block with at least FEWEST_CELLS rows and columns, or in the block with the
    most. Of a convolutional block it is the block itself. Of a transformer's it is the first norm:
    what comes out of the last block reaches the classifier by the class token only, so its patches
    have no gradient.

    Raises UserError for a model that has no such layer.
    """
    names = [name for name, _ in blocks(model)]
    shapes, grids = _probe(model, side, names)
    layers: list[HeatMapLayer] = []
    for block in reversed(names):
        modules = list(model.get_submodule(block).named_modules())
        candidates = [f"{block}.{name}" for name, module in modules if _is_norm(module)]
        if any(isinstance(module, nn.Conv2d) for _, module in modules):
            candidates.insert(0, block)
        for name in candidates:
            if layer := _as_layer(name, shapes.get(name), grids, name != block):
                layers.append(layer)
                break
        if layers and min(layers[-1].grid) >= FEWEST_CELLS:
            return layers[-1]
    if not layers:
        raise UserError(
            f"{model.config.model_type}: a heat map is made from a block of convolutions or of a"
            " transformer, and this model has none; leave heat maps out"
        )
    return max(layers, key=lambda layer: layer.grid)  # of equal ones the last block's comes first


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm | nn.RMSNorm)


def _probe(
    model: Any, side: int, names: list[str]
) -> tuple[dict[str, torch.Size], list[tuple[int, int]]]:
    """Return the shapes of the outputs of blocks and of the norms in them, by name, for one picture
    of `side` pixels, and the rows and columns of all convolutions' outputs.
    """
    shapes: dict[str, torch.Size] = {}
    grids: list[tuple[int, int]] = []

    def note_shape(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                shapes[name] = output.shape

        return hook

    def note_grid(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        grids.append((output.shape[-2], output.shape[-1]))

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note_grid))
        if name in names or _is_norm(module):
            hooks.append(module.register_forward_hook(note_shape(name)))
    try:
        with torch.inference_mode():
            device = next(model.parameters()).device
            model(pixel_values=torch.zeros(1, 3, side, side, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return shapes, grids


def _as_layer(
    name: str, shape: torch.Size | None, grids: list[tuple[int, int]], is_norm: bool
) -> HeatMapLayer | None:
    """Return how the outputs of a layer are laid out, or None where they are no map."""
    if shape is None or shape[0] != 1:  # some blocks fold patches into the batch
        return None
    if len(shape) == 4:
        if is_norm:
            return HeatMapLayer(name, (shape[1], shape[2]), "channels_last")
        return HeatMapLayer(name, (shape[2], shape[3]), "channels_first")
    if len(shape) != 3:
        return None
    # Convolutions make the patches, and stages halve their grid, rounding up. The largest grid that
    # the tokens can hold is theirs; what is over are class and register tokens.
    candidates = []
    for rows, columns in grids:
        for _ in range(MOST_HALVINGS):
            if rows * columns <= shape[1]:
                candidates.append((rows, columns))
                break
            rows, columns = -(-rows // 2), -(-columns // 2)
    if not candidates:
        return None
    return HeatMapLayer(name, max(candidates, key=lambda grid: grid[0] * grid[1]), "tokens")
