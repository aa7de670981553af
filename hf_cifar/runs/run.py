"""One run, from a recipe to a folder that `pipeline` loads."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from hf_cifar.distributed import from_first_process, rank, world_size
from hf_cifar.files import write_json
from hf_cifar.methods.base import Setup
from hf_cifar.methods.table import METHODS
from hf_cifar.models.flops import forward_flops
from hf_cifar.models.structure import describe
from hf_cifar.objectives.base import ReadyModel
from hf_cifar.objectives.table import find_objective
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.reporting.model_card import write_card
from hf_cifar.reporting.result_warnings import result_warnings
from hf_cifar.runs.facts import EnergyMeter, run_facts
from hf_cifar.runs.folder import RunFolder
from hf_cifar.training.arguments import RunArguments, training_arguments
from hf_cifar.training.launch_checks import check_processes, meet_after_restart
from hf_cifar.training.precision import fastest_precision, prepare_device, set_weight_layout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run. path: its folder. metrics: what metrics.json says."""

    path: Path
    metrics: dict[str, Any]

    def pipeline(self, **kwargs: Any) -> Any:
        """Return the `transformers.pipeline` of the run's model: an image classifier's, but for an
        objective whose model does something else.
        """
        from transformers import pipeline

        task = self.metrics.get("task", "image-classification")
        return pipeline(task, model=str(self.path), **kwargs)


def train(recipe: str, *, fresh: bool = False, **overrides: Any) -> Run:
    """Train what a recipe says and return the run.

    A folder that holds a part of the same run is resumed; a finished run is returned as it is.

    recipe: a file or the name of a packaged recipe; any key can be overridden. fresh: start over.

    Raises UserError for bad input, Diverged for a loss that is not finite, Interrupted after a
    signal.
    """
    loaded = load_recipe(recipe, overrides)
    run = train_recipe(loaded, fresh=fresh)
    if loaded.training["push_to_hub"] and rank() == 0:
        from hf_cifar.hub.push import push
        from hf_cifar.hub.upload import PushOptions

        private = bool(loaded.training["hub_private_repo"])
        push(run.path, loaded.training["hub_model_id"], PushOptions(private=private))
    return run


def train_recipe(recipe: Recipe, *, fresh: bool = False) -> Run:
    """Train what a loaded recipe says and return the run, without a push.

    Under a launcher every process calls this, and the first one writes.
    """
    start_processes(recipe)
    with RunFolder.claim(recipe, fresh) as folder:
        metrics = folder.finished_metrics()
        if metrics is not None:
            log.info("%s: finished before; --fresh trains it anew", folder.path)
            return Run(folder.path, metrics)
        energy = EnergyMeter()
        setup = set_up(folder.recipe)  # data, backbone, method and objective on their device
        folder.write_recipe(setup.recipe)
        setup.objective.check_report()  # a class name that a plot can't draw is an error now
        learner = setup.method.learner(setup)
        learner.train()  # or resume
        outputs = {name: learner.predict(name) for name in learner.evaluation}
        metrics = {"run_name": folder.path.name} | setup.objective.score(outputs)
        metrics |= learner.results() | run_facts(setup) | energy.facts(learner.resumed)
        metrics["warnings"] = result_warnings(metrics)
        model = learner.trained_model()
        if setup.arguments.should_save:
            model = setup.objective.finish_model(model)
            with folder.writing() as aside:
                setup.method.save(model, aside)
                setup.backbone.processor.save_pretrained(aside)
                write_json(aside / "metrics.json", metrics)
                setup.objective.report(aside, metrics)
                write_card(aside)
        return Run(folder.path, metrics)


def start_processes(recipe: Recipe) -> RunArguments:
    """Let the processes of a run meet, and return its TrainingArguments as far as they are known.

    Raises UserError for keys that they refuse, before anything is loaded, and for a launcher that
    started fewer processes than it was asked for.
    """
    training = recipe.training
    backend = training.get("ddp_backend") or ("gloo" if training.get("use_cpu") else None)
    meet_after_restart(backend, training.get("ddp_timeout") or 1800)
    arguments = training_arguments(recipe, find_objective(recipe).checkpoint_metrics)
    if (warning := check_processes(world_size())) is not None:
        log.warning("%s", warning)
    return arguments


def set_up(recipe: Recipe) -> Setup:
    """Return data, backbone, method and objective on their device, ready to train in the precision
    and memory layout that are fastest there.

    Raises UserError for bad input.
    """
    objective_type = find_objective(recipe)
    device = training_arguments(recipe, objective_type.checkpoint_metrics).device
    prepare_device(device, deterministic=bool(recipe.training.get("full_determinism")))
    set_seed(recipe.seed)
    objective = objective_type(recipe)  # what is learned: data, loss, metrics
    method = METHODS[recipe.method](recipe)  # which weights train, and what is saved of them
    backbone = objective.load_backbone()
    model = method.prepare(backbone.model)
    log.info("%s", describe(model))
    model.to(device)

    precision, reason = from_first_process(  # it is measured: each process would find its own
        fastest_precision(
            model,
            backbone.image_size,
            device,
            bf16=False if recipe.training.get("fp16") else recipe.training["bf16"],
            channels_last=recipe.channels_last,
        )
    )
    log.info("speed: %s", reason)
    set_weight_layout(model, device, precision.channels_last)
    training = recipe.training | {"bf16": precision.bf16}
    recipe = dataclasses.replace(recipe, training=training, channels_last=precision.channels_last)
    arguments = training_arguments(recipe, objective.checkpoint_metrics, objective.workers)
    ready = ReadyModel(backbone, model, device, precision.channels_last, method.views)
    datasets = objective.datasets(ready)
    flops = forward_flops(model, backbone.image_size, device)
    return Setup(recipe, arguments, objective, method, backbone, model, datasets, flops)
