"""The objectives that a recipe can name."""

from __future__ import annotations

from hf_cifar.errors import UserError
from hf_cifar.objectives.base import Objective
from hf_cifar.objectives.classification import Classification

OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
}


def find_objective(name: str) -> type[Objective]:
    """Return the objective of a name. Raises UserError that lists the names there are."""
    if name not in OBJECTIVES:
        raise UserError(f"objective: must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]
