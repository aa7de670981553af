"""Muon for the matrices inside the blocks and another optimizer for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MuonWithFallback(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the groups marked `muon`, another optimizer for the others.

    Muon's step is scaled to the size of AdamW's (`match_rms_adamw`, Liu et al. 2025, arXiv
    2502.16982, section 2.2), so that both take the same learning rates.

    params: groups {params, lr, weight_decay, muon: bool, ...}; those of Muon hold matrices.
    fallback: makes the other optimizer from its groups.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        fallback: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    ) -> None:
        super().__init__(params, {})
        matrices = [group for group in self.param_groups if group["muon"]]
        others = [group for group in self.param_groups if not group["muon"]]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"))
        if others:
            self.parts.append(fallback(others))
        self._share_groups()

    def _share_groups(self) -> None:
        """Make the groups of the parts the groups of this optimizer, which a schedule changes."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one step of each part. `closure` is not supported; the Trainer passes none."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return {"parts": [the state of each part]}."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned for the same groups."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
