"""The recipe's keys as TrainingArguments."""

from __future__ import annotations

import logging

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.training.launch_checks import meet_again
from hf_cifar.training.precision import has_bf16

log = logging.getLogger(__name__)
METRICS = {
    "accuracy": True,
    "f1_macro": True,
    "nll": False,
    "loss": False,
}  # that can choose a checkpoint; more is better?


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe's keys as TrainingArguments, with what this program decides itself. Raises
    UserError.
    """
    values = dict(recipe.training)
    cuda = torch.cuda.is_available() and not values.get("use_cpu")
    if cuda and values["bf16"] is None:
        values["bf16"] = recipe.training["bf16"] = has_bf16(torch.device("cuda"))
    if recipe.validation_fraction == 0:
        values["eval_strategy"] = "no"
    metric = str(values["metric_for_best_model"]).removeprefix("eval_")
    if metric not in METRICS:
        raise UserError(f"metric_for_best_model: {metric}: choose {', '.join(METRICS)}")
    values["metric_for_best_model"] = recipe.training["metric_for_best_model"] = metric
    if values.get("greater_is_better") is None:
        values["greater_is_better"] = METRICS[metric]
    if values.get("fp16"):
        values["bf16"] = recipe.training["bf16"] = False
    steps_match = values["save_strategy"] in (values["eval_strategy"], "best")
    for name in ("hub_model_id", "hub_private_repo", "push_to_hub", "save_total_limit"):
        values.pop(name)
    values |= {
        "output_dir": str(recipe.output_dir / "checkpoints"),
        "bf16": bool(values["bf16"])
        and recipe.method != "linear",  # heads alone are no work for it
        "use_cpu": not cuda,
        "dataloader_num_workers": values["dataloader_num_workers"] or 0,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "logging_nan_inf_filter": False,  # it waits for the device at every step
        "dataloader_pin_memory": cuda,
        "load_best_model_at_end": values["eval_strategy"] != "no" and steps_match,
        "disable_tqdm": values.get("disable_tqdm") or False,
        "accelerator_config": {"non_blocking": cuda} | (values.get("accelerator_config") or {}),
    }
    if values.get("ddp_find_unused_parameters") is None:
        # What trains is always used, but while a schedule keeps some of it frozen.
        values["ddp_find_unused_parameters"] = bool(recipe.head_epochs or recipe.unfreeze_every)
    if cuda and values.get("tf32") is None:
        values["tf32"] = torch.cuda.get_device_capability()[0] >= 8
    meet_again(
        values.get("ddp_backend") or ("nccl" if cuda else "gloo"), values.get("ddp_timeout") or 1800
    )
    try:
        args = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"recipe {recipe.name}: {str(error).splitlines()[0]}") from None
    there = get_available_reporting_integrations()
    if lacking := [name for name in args.report_to or () if name not in there]:
        have = ", ".join(there) or "none"
        raise UserError(
            f"report_to: {lacking[0]} is not known or not installed; installed are {have}"
        )
    if args.n_gpu > 1:
        log.warning(
            "one of %d GPUs is used; `accelerate launch -m hf_cifar train ...` uses all", args.n_gpu
        )
        args._n_gpu = 1
    return args
