"""Floating-point operations of a forward pass."""

from __future__ import annotations

import torch
from torch import nn


def forward_flops(model: nn.Module, image_size: int, device: torch.device) -> int:
    """Floating-point operations of one image's forward pass (a multiply-add is two), counted by
    torch on a real pass.
    """
    from torch.utils.flop_counter import FlopCounterMode

    mode = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(pixel_values=torch.zeros(1, 3, image_size, image_size, device=device))
    model.train(mode)
    return counter.get_total_flops()
