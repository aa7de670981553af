"""One run from recipe to run folder: data, backbone, adaptation, training, test, model, metrics,
plots, card, push.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments, set_seed

from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError
from hf_cifar.methods.trainable import adapt
from hf_cifar.models.flops import forward_flops
from hf_cifar.models.load import load_backbone
from hf_cifar.models.structure import describe
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe, public_name
from hf_cifar.reporting.model_card import write_card
from hf_cifar.reporting.plots import write_plots
from hf_cifar.reporting.provenance import energy_joules
from hf_cifar.runs.folder import claim_folder, lock_folder, start_over
from hf_cifar.runs.stages import Heads, Stage, WholeModel
from hf_cifar.training import checkpoints
from hf_cifar.training.arguments import training_arguments
from hf_cifar.training.launch_checks import check_processes
from hf_cifar.training.precision import fastest, keep_freed_memory

log = logging.getLogger(__name__)


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
    """Train what `recipe` (a file or the name of a packaged recipe) says, with any key overridden,
    and return the run.

    A run folder that holds part of the same run is resumed, a finished one is returned as it is;
    `fresh` starts over.
    Raises UserError for bad input and trainer.Diverged for a loss that is not finite.
    """
    loaded = load_recipe(recipe, overrides)
    run = train_recipe(loaded, fresh=fresh)
    if loaded.training["push_to_hub"] and int(os.environ.get("RANK", "0")) == 0:
        from hf_cifar.hub.push import push

        push(
            run.path,
            loaded.training["hub_model_id"],
            private=bool(loaded.training["hub_private_repo"]),
        )
    return run


def train_recipe(recipe: Recipe, *, fresh: bool = False) -> Run:
    """`train` for a recipe that is loaded already. Under `accelerate launch` every process calls
    it; the first one writes.
    """
    folder, args = recipe.output_dir, training_arguments(recipe)
    try:
        return _one_run(recipe, folder, args, fresh)
    except Exception as error:
        if (why := checkpoints.refusal(error)) is None:
            raise
        good, _ = checkpoints.last_good(folder / "checkpoints")
        again = (
            f"which goes on from {good.name}"
            if good
            else "which begins anew: there is no checkpoint yet"
        )
        raise UserError(
            f"output_dir: {folder} takes no more ({why}); make room and start the same command, {again}"
        ) from None


def _one_run(recipe: Recipe, folder: Path, args: TrainingArguments, fresh: bool) -> Run:
    if (suspicious := check_processes(args.world_size)) is not None:
        log.warning("%s", suspicious)
    with lock_folder(folder) if args.should_save else contextlib.nullcontext():
        if args.should_save:
            if fresh:
                start_over(folder)
            recipe = claim_folder(folder, recipe, fresh)
        if _agreed((folder / "metrics.json").is_file(), args):
            log.info("%s: finished before; --fresh trains it anew", folder)
            try:
                metrics = json.loads((folder / "metrics.json").read_text())
            except ValueError as error:
                raise UserError(
                    f"{folder}: metrics.json is damaged ({error}); remove it and start the same command"
                ) from None
            if args.should_save and not (folder / "README.md").is_file():
                write_card(folder)
            return Run(folder, metrics)
        return _train(recipe, args)


def _agreed(value: Any, args: TrainingArguments) -> Any:
    """The first process's value, on every process."""
    return broadcast_object_list([value])[0] if args.world_size > 1 else value


def prepare(recipe: Recipe, args: TrainingArguments) -> Stage:
    """Data, backbone and adaptation on the device, in the precision and layout that are fastest
    there, ready to train.

    Writes precision and layout into the recipe. Raises UserError for bad input.
    """
    set_seed(recipe.seed)
    if args.device.type == "cpu":
        keep_freed_memory()
    data = load_data(recipe)
    for line in data.messages:
        log.info("%s", line)
    backbone = load_backbone(recipe, data.label_names)
    model = adapt(backbone.model, recipe, public_name(recipe.model_name_or_path))
    log.info("%s", describe(model))
    model.to(args.device)
    asked = recipe.training["bf16"], recipe.channels_last
    found = fastest(model, backbone.image_size, args.device, *asked)
    recipe.training["bf16"], recipe.channels_last, why = _agreed(
        found, args
    )  # measured: each process would find its own
    log.info("speed: %s", why)
    if recipe.training["bf16"] and recipe.method != "linear":
        args.bf16, args.mixed_precision = True, "bf16"
    flops = forward_flops(model, backbone.image_size, args.device)
    return (Heads if recipe.method == "linear" else WholeModel)(
        recipe, args, data, backbone, model, flops
    )


def _train(recipe: Recipe, args: TrainingArguments) -> Run:
    folder = recipe.output_dir
    joules = (
        energy_joules(args.device) if args.world_size == 1 else None
    )  # one process sees one device's counter
    stage = prepare(recipe, args)
    if args.should_save:
        (folder / "recipe.yaml.part").write_text(recipe.to_yaml())
        (folder / "recipe.yaml.part").replace(folder / "recipe.yaml")
    trainer = stage.trainer()
    metrics = stage.fit(trainer)
    used = energy_joules(args.device)
    metrics["energy_kwh"] = None
    if (
        joules is not None and used is not None and trainer.carry.resume_from is None
    ):  # of a resumed run a part is not known
        metrics["energy_kwh"] = (used - joules) / 3.6e6
    trainer.gather()
    if not args.should_save:
        return Run(folder, metrics)
    stage.save_model(trainer)
    (folder / "metrics.json.part").write_text(json.dumps(metrics, indent=1))
    write_plots(folder, metrics, stage.pictures)
    left = [p for p in (*folder.iterdir(), *folder.glob("adapter/*")) if p.is_file()]
    checkpoints.sync(*left)  # metrics.json says that all of it is there
    (folder / "metrics.json.part").replace(folder / "metrics.json")
    write_card(folder)
    return Run(folder, metrics)
