"""The recipe's keys as `TrainingArguments`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training.check_optimizer import check_optimizer

log = logging.getLogger(__name__)
# Keys that the run itself acts on; the Trainer must not act on them a second time.
HANDLED_BY_THE_RUN = (
    "hub_model_id",
    "hub_private_repo",
    "push_to_hub",
    "save_total_limit",
    "label_smoothing_factor",  # the objective's loss smooths, summed over the accumulated batch
    "dataloader_drop_last",  # the sampler drops; here it would drop images from evaluation, too
)


@dataclass
class RunArguments(TrainingArguments):
    """TrainingArguments of a process that drives one device, however many the machine has."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


def training_arguments(
    recipe: Recipe, checkpoint_metrics: Mapping[str, bool], workers: int = 0
) -> RunArguments:
    """Return the TrainingArguments of a recipe.

    checkpoint_metrics: metrics of the objective that can choose a checkpoint -> whether more of
    them is better. workers: data loader workers, where the recipe leaves their number open.

    Raises UserError for keys that TrainingArguments, the optimizer or the schedule refuses.
    """
    values = dict(recipe.training)
    cuda = torch.cuda.is_available() and not values.get("use_cpu")
    metric = str(values["metric_for_best_model"]).removeprefix("eval_")
    if metric not in checkpoint_metrics:
        raise UserError(
            f"metric_for_best_model: {metric} can't choose a checkpoint;"
            f" choose {', '.join(checkpoint_metrics)}"
        )
    if values.get("greater_is_better") is None:
        values["greater_is_better"] = checkpoint_metrics[metric]
    if recipe.validation_fraction == 0:
        values["eval_strategy"] = "no"
    saves_where_it_evaluates = values["save_strategy"] in (values["eval_strategy"], "best")
    for name in HANDLED_BY_THE_RUN:
        values.pop(name, None)
    if values["dataloader_num_workers"] is None:
        values["dataloader_num_workers"] = workers
    if values.get("ddp_find_unused_parameters") is None:
        # A parameter is unused only while a schedule keeps it frozen.
        values["ddp_find_unused_parameters"] = bool(recipe.head_epochs or recipe.unfreeze_every)
    if cuda and values.get("tf32") is None:
        values["tf32"] = torch.cuda.get_device_capability()[0] >= 8
    values |= {
        "output_dir": str(recipe.output_dir / "checkpoints"),
        "metric_for_best_model": metric,
        "bf16": bool(values["bf16"]) and not values.get("fp16"),
        "use_cpu": not cuda,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "logging_nan_inf_filter": False,  # it waits for the device at every step
        "dataloader_pin_memory": cuda,
        "load_best_model_at_end": values["eval_strategy"] != "no" and saves_where_it_evaluates,
        "disable_tqdm": values.get("disable_tqdm") or False,
    }
    arguments = _construct(values, cuda, recipe.name)
    installed = get_available_reporting_integrations()
    if missing := [name for name in arguments.report_to or () if name not in installed]:
        raise UserError(
            f"report_to: {missing[0]} is not known or not installed;"
            f" installed are {', '.join(installed) or 'none'}"
        )
    check_optimizer(arguments)
    return arguments


def _construct(values: dict[str, Any], cuda: bool, recipe_name: str) -> RunArguments:
    """Return RunArguments(**values). Raises UserError for whatever they refuse, however they do."""
    try:
        accelerator = dict(values.get("accelerator_config") or {})
        return RunArguments(**values | {"accelerator_config": {"non_blocking": cuda} | accelerator})
    except UserError:
        raise
    except Exception as error:  # each option fails in its own library's way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"recipe {recipe_name}: TrainingArguments: {reason[:200]}") from None
