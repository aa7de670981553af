"""One run from recipe to run folder: data, backbone, adaptation, training, test, model, metrics, plots, card, push."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from transformers import TrainingArguments, set_seed
from transformers.integrations import get_available_reporting_integrations

from hf_cifar import checkpoints, hardware, report
from hf_cifar.adaptation import adapt
from hf_cifar.backbones import describe, load_backbone
from hf_cifar.data import load_data
from hf_cifar.errors import UserError
from hf_cifar.launch import check_processes, meet_again
from hf_cifar.recipe import Recipe, load_recipe, public_name
from hf_cifar.stages import Heads, Stage, WholeModel

log = logging.getLogger(__name__)

# Keys that may differ between two starts of one run: they say where it runs or goes, not what it computes.
FREE_KEYS = {
    "output_dir",
    "bf16",
    "channels_last",
    "disable_tqdm",
    "use_cpu",
    "data_path",
    "per_device_eval_batch_size",
    "save_total_limit",
    "dataloader_num_workers",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "license",
}


METRICS = {"accuracy": True, "f1_macro": True, "nll": False, "loss": False}  # that can choose a checkpoint; more is better?
LEFT_BY_A_RUN = (
    "recipe.yaml*",
    "checkpoints",
    "model*.safetensors*",
    "config.json",
    "preprocessor_config.json",
    "adapter",
    "metrics.json*",
    "predictions.parquet",
    "plots",
    "README.md",
)


@dataclass(frozen=True)
class Run:
    """A finished run: `path` is its folder, `metrics` what metrics.json says."""

    path: Path
    metrics: dict[str, Any]

    def pipeline(self, **kwargs: Any) -> Any:
        """`transformers.pipeline("image-classification")` of the run's model."""
        from transformers import pipeline

        return pipeline("image-classification", model=str(self.path), **kwargs)


def train(recipe: str, *, fresh: bool = False, **overrides: Any) -> Run:
    """Train what `recipe` (a file or the name of a packaged recipe) says, with any key overridden, and return the run.

    A run folder that holds part of the same run is resumed, a finished one is returned as it is; `fresh` starts over.
    Raises UserError for bad input and trainer.Diverged for a loss that is not finite.
    """
    loaded = load_recipe(recipe, overrides)
    run = train_recipe(loaded, fresh=fresh)
    if loaded.training["push_to_hub"] and int(os.environ.get("RANK", "0")) == 0:
        from hf_cifar.hub import push

        push(run.path, loaded.training["hub_model_id"], private=bool(loaded.training["hub_private_repo"]))
    return run


def train_recipe(recipe: Recipe, *, fresh: bool = False) -> Run:
    """`train` for a recipe that is loaded already. Under `accelerate launch` every process calls it; the first one writes."""
    folder, args = recipe.output_dir, training_arguments(recipe)
    try:
        return _one_run(recipe, folder, args, fresh)
    except Exception as error:
        if (why := checkpoints.refusal(error)) is None:
            raise
        good, _ = checkpoints.last_good(folder / "checkpoints")
        again = f"which goes on from {good.name}" if good else "which begins anew: there is no checkpoint yet"
        raise UserError(f"output_dir: {folder} takes no more ({why}); make room and start the same command, {again}") from None


def _one_run(recipe: Recipe, folder: Path, args: TrainingArguments, fresh: bool) -> Run:
    if (suspicious := check_processes(args.world_size)) is not None:
        log.warning("%s", suspicious)
    with _alone(folder) if args.should_save else contextlib.nullcontext():
        if args.should_save:
            if fresh:
                _start_over(folder)
            recipe = _claim(folder, recipe, fresh)
        if _agreed((folder / "metrics.json").is_file(), args):
            log.info("%s: finished before; --fresh trains it anew", folder)
            try:
                metrics = json.loads((folder / "metrics.json").read_text())
            except ValueError as error:
                raise UserError(f"{folder}: metrics.json is damaged ({error}); remove it and start the same command") from None
            if args.should_save and not (folder / "README.md").is_file():
                report.write_card(folder)
            return Run(folder, metrics)
        return _train(recipe, args)


def _agreed(value: Any, args: TrainingArguments) -> Any:
    """The first process's value, on every process."""
    return broadcast_object_list([value])[0] if args.world_size > 1 else value


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The run folder, made and locked. Raises UserError where it can't be made or somebody else trains in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: {folder}: {error.strerror}; name another folder") from None
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"output_dir: {folder}: another process is training here; wait for it or name another folder") from None
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)  # while it is held: later it may be another process's
        lock.release()


def _start_over(folder: Path) -> None:
    """Remove what a run leaves, and nothing else. Raises UserError where the folder holds other things and no run."""
    if not (folder / "recipe.yaml").is_file() and any(p.name != ".lock" for p in folder.iterdir()):
        raise UserError(f"output_dir: {folder} is not empty and holds no run, so --fresh removes nothing; name another folder")
    for path in sorted(p for pattern in LEFT_BY_A_RUN for p in folder.glob(pattern)):
        log.warning("--fresh: removing %s", path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _claim(folder: Path, recipe: Recipe, fresh: bool) -> Recipe:
    """Write the recipe into the folder, or, where one stands there, make sure that it is the same run and go on with its
    choices. Raises UserError that lists the keys that differ.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        others = [p.name for p in folder.iterdir() if p.name not in (".lock", "recipe.yaml.part")]
        if others and not fresh:
            raise UserError(f"output_dir: {folder} is not empty and holds no run ({others[0]}); name another folder")
        return recipe
    before = load_recipe(str(path))
    old, new = before.to_dict(), recipe.to_dict()
    differ = [k for k in {**old, **new} if k not in FREE_KEYS and old.get(k) != new.get(k)]
    if differ:
        parts = ", ".join(f"{k} ({old.get(k)} there, {new.get(k)} here)" for k in differ[:5])
        raise UserError(
            f"output_dir: {folder} holds a run of another recipe: {parts}; name another output_dir or start over with --fresh"
        )
    if recipe.training["bf16"] is None:
        recipe.training["bf16"] = before.training["bf16"]
    if recipe.channels_last is None:
        recipe.channels_last = before.channels_last
    return recipe


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe's keys as TrainingArguments, with what this program decides itself. Raises UserError."""
    values = dict(recipe.training)
    cuda = torch.cuda.is_available() and not values.get("use_cpu")
    if cuda and values["bf16"] is None:
        values["bf16"] = recipe.training["bf16"] = hardware.has_bf16(torch.device("cuda"))
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
        "bf16": bool(values["bf16"]) and recipe.method != "linear",  # heads alone are no work for it
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
    meet_again(values.get("ddp_backend") or ("nccl" if cuda else "gloo"), values.get("ddp_timeout") or 1800)
    try:
        args = TrainingArguments(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"recipe {recipe.name}: {str(error).splitlines()[0]}") from None
    there = get_available_reporting_integrations()
    if lacking := [name for name in args.report_to or () if name not in there]:
        have = ", ".join(there) or "none"
        raise UserError(f"report_to: {lacking[0]} is not known or not installed; installed are {have}")
    if args.n_gpu > 1:
        log.warning("one of %d GPUs is used; `accelerate launch -m hf_cifar train ...` uses all", args.n_gpu)
        args._n_gpu = 1
    return args


def prepare(recipe: Recipe, args: TrainingArguments) -> Stage:
    """Data, backbone and adaptation on the device, in the precision and layout that are fastest there, ready to train.

    Writes precision and layout into the recipe. Raises UserError for bad input.
    """
    set_seed(recipe.seed)
    if args.device.type == "cpu":
        hardware.keep_freed_memory()
    data = load_data(recipe)
    for line in data.messages:
        log.info("%s", line)
    backbone = load_backbone(recipe, data.label_names)
    model = adapt(backbone.model, recipe, public_name(recipe.model_name_or_path))
    log.info("%s", describe(model))
    model.to(args.device)
    asked = recipe.training["bf16"], recipe.channels_last
    found = hardware.fastest(model, backbone.image_size, args.device, *asked)
    recipe.training["bf16"], recipe.channels_last, why = _agreed(found, args)  # measured: each process would find its own
    log.info("speed: %s", why)
    if recipe.training["bf16"] and recipe.method != "linear":
        args.bf16, args.mixed_precision = True, "bf16"
    flops = hardware.forward_flops(model, backbone.image_size, args.device)
    return (Heads if recipe.method == "linear" else WholeModel)(recipe, args, data, backbone, model, flops)


def _train(recipe: Recipe, args: TrainingArguments) -> Run:
    folder = recipe.output_dir
    joules = hardware.energy_joules(args.device) if args.world_size == 1 else None  # one process sees one device's counter
    stage = prepare(recipe, args)
    if args.should_save:
        (folder / "recipe.yaml.part").write_text(recipe.to_yaml())
        (folder / "recipe.yaml.part").replace(folder / "recipe.yaml")
    trainer = stage.trainer()
    metrics = stage.fit(trainer)
    used = hardware.energy_joules(args.device)
    metrics["energy_kwh"] = None
    if joules is not None and used is not None and trainer.carry.resume_from is None:  # of a resumed run a part is not known
        metrics["energy_kwh"] = (used - joules) / 3.6e6
    trainer.gather()
    if not args.should_save:
        return Run(folder, metrics)
    stage.save_model(trainer)
    (folder / "metrics.json.part").write_text(json.dumps(metrics, indent=1))
    report.write_plots(folder, metrics, stage.pictures)
    left = [p for p in (*folder.iterdir(), *folder.glob("adapter/*")) if p.is_file()]
    checkpoints.sync(*left)  # metrics.json says that all of it is there
    (folder / "metrics.json.part").replace(folder / "metrics.json")
    report.write_card(folder)
    return Run(folder, metrics)
