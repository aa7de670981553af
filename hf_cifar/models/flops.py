"""Floating-point operations of a forward pass."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(model: nn.Module, image_size: int, device: torch.device) -> int:
    """Return the floating-point operations of one image's forward pass, a multiply-add being two.

    They are counted on a real pass, or on one in name only inside a FakeTensorMode.
    """
    mode = model.training
    model.eval()
    images = torch.zeros(1, 3, image_size, image_size, device=device)
    # torch counts nothing for the fused attention of a CPU, but every product of the plain one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixel_values=images)
    model.train(mode)
    return counter.get_total_flops()
