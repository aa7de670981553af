"""The objectives that a recipe can name."""

from __future__ import annotations

from hf_cifar.errors import UserError
from hf_cifar.objectives.base import Objective
from hf_cifar.objectives.classification import Classification
from hf_cifar.objectives.distillation import Distillation
from hf_cifar.objectives.masked_autoencoder import MaskedAutoencoding
from hf_cifar.objectives.multi_label import MultiLabel
from hf_cifar.objectives.multi_task import MultiTask
from hf_cifar.objectives.semi_supervised import SemiSupervised
from hf_cifar.recipe.recipe import Recipe

OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "distillation": Distillation,
    "masked_autoencoder": MaskedAutoencoding,
    "multi_label": MultiLabel,
    "multi_task": MultiTask,
    "semi_supervised": SemiSupervised,
}


def find_objective(recipe: Recipe) -> type[Objective]:
    """Return the objective that a recipe names.

    Raises UserError for a name that there is not, and for a method that can't train the objective.
    """
    name = recipe.objective
    if name not in OBJECTIVES:
        raise UserError(f"objective: must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    objective = OBJECTIVES[name]
    if recipe.method not in objective.methods:
        raise UserError(
            f"method: {recipe.method} can't train `objective: {name}`; choose"
            f" {', '.join(objective.methods)}"
        )
    return objective
