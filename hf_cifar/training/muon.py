"""Muon for the matrices inside the blocks and any other optimizer for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class MuonWithFallback(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the groups marked `muon`, another optimizer for the others.

    Muon's step is scaled to the size of AdamW's (`match_rms_adamw`, Liu et al. 2025, arXiv
    2502.16982, section 2.2), so that both take the same learning rates. groups: {params, lr,
    weight_decay, muon: bool, ...}; those of Muon hold matrices.
    rest: makes the other optimizer from its groups.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        rest: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    ) -> None:
        super().__init__(groups, {})
        self.parts: list[torch.optim.Optimizer] = []
        for muon in (True, False):
            own = [g for g in self.param_groups if g["muon"] is muon]
            if own:
                self.parts.append(
                    torch.optim.Muon(own, adjust_lr_fn="match_rms_adamw") if muon else rest(own)
                )
        self._share()

    def _share(self) -> None:
        """The parts' groups are this optimizer's, so that a schedule that sets a rate here sets it
        there.
        """
        self.param_groups = [g for part in self.parts for g in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each part. Takes no closure: the Trainer has none."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """{parts: the parts' own}"""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave, for the same groups."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()
