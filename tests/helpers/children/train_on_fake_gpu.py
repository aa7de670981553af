"""Train each case for three steps on a GPU that computes nothing, and report what the device saw.

    PYTHONPATH=tests python train_on_fake_gpu.py CASES.json REPORT.json

CASES.json: {name: {recipe key: value}}. REPORT.json: {name: {error, steps, waits, mixed, kernels}}:
the traceback or null, steps made, what made the host wait in the second and third step, operations
on lists that lie on two devices, and the operations of one step by phase and name. "controls" holds
the same for operations that must be seen.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from helpers.fake_gpu import GPU, MODE, WATCH, outside
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from hf_cifar.augmentation import fused
from hf_cifar.data.batches import ImageBatches
from hf_cifar.features.hidden_states import HiddenStateBatches
from hf_cifar.methods.base import Method
from hf_cifar.methods.table import METHODS
from hf_cifar.objectives.classification import Classification
from hf_cifar.planning.model_sizes import make_fake
from hf_cifar.recipe.load import load_recipe
from hf_cifar.runs.run import set_up, start_processes

STEPS = 3
RECIPE: dict[str, Any] = {
    "dataset_name": "sample",
    "max_train_samples": 96,
    "max_eval_samples": 32,
    "max_steps": STEPS,  # training stops there in any case
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1000,
    "disable_tqdm": True,
}


class CountOneStep(TrainerCallback):
    """Let the watch look from the end of the first step to the end of the third."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = state.global_step
        WATCH.counting = state.global_step < STEPS
        control.should_training_stop |= state.global_step == STEPS


def in_phase(function: Callable, phase: str) -> Callable:
    def run(*args: Any, **kwargs: Any) -> Any:
        with WATCH.at(phase):
            return function(*args, **kwargs)

    return run


def run_uncompiled(function: Callable, leaves: list[torch.Tensor]) -> Callable:
    """Stands for `fused.compile_graph`: the operations of a compiled graph are counted apart."""
    return in_phase(function, "compiled")


def prepare_fake(prepare: Callable) -> Callable:
    """Return `Method.prepare` so that it gives the model fake tensors on the CPU, to be moved."""

    def run(method: Method, model: Any) -> Any:
        with unset_fake_temporarily():
            prepared = prepare(method, model)
        make_fake(prepared)
        return prepared

    return run


for dataset in (ImageBatches, HiddenStateBatches):
    dataset.model_inputs = in_phase(dataset.model_inputs, "data path")  # type: ignore[method-assign]
Classification.load_backbone = outside(Classification.load_backbone)  # type: ignore[method-assign]
fused.compile_graph = run_uncompiled
for method in METHODS.values():
    method.prepare = prepare_fake(method.prepare)  # type: ignore[method-assign]


def train(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one recipe as a run does, score its test images, and report."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output_dir": str(folder / "run")} | keys))
    recipe, count = load_recipe(str(path)), CountOneStep()
    DEFAULT_CALLBACKS.append(count)
    error = None
    WATCH.reset()
    try:
        with MODE, WATCH:
            start_processes(recipe)
            setup = set_up(recipe)
            assert setup.arguments.device == GPU
            learner = setup.method.learner(setup)
            learner.train()
            WATCH.counting = False
            learner.predict("test")
    except Exception as problem:
        frames = traceback.extract_tb(problem.__traceback__)
        outside_torch = [frame for frame in frames if "/torch/" not in frame.filename]
        # torch adds a hundred lines to some messages.
        error = "".join(traceback.format_list(outside_torch))
        error += f"{type(problem).__name__}: {str(problem)[:1000]}"
    finally:
        WATCH.counting = False
        DEFAULT_CALLBACKS.remove(count)
    return {"error": error, "steps": count.steps} | seen(STEPS - 1)


def seen(steps: int) -> dict[str, Any]:
    """Return what the watch saw, with operations by step."""
    kernels = {
        phase: {name: number / steps for name, number in names.most_common()}
        for phase, names in WATCH.kernels.items()
    }
    return {"waits": WATCH.waits, "mixed": WATCH.mixed, "kernels": kernels}


def controls() -> dict[str, Any]:
    """Return what the watch sees of operations that wait, and of lists on two devices."""
    WATCH.reset()
    with MODE, WATCH:
        there, here = torch.zeros(3, device=GPU), torch.zeros(3)
        norm = torch.nn.BatchNorm1d(3)
        make_fake(norm)
        weight, mean = norm.weight, norm.running_mean
        WATCH.counting = True
        bool((there > 0).any())
        float(there.sum())
        there.tolist()
        there.cpu()
        here.to(GPU)
        torch.tensor([1.0], device=GPU)
        torch.equal(there, there)
        here.to(GPU, non_blocking=True)  # the only one that does not wait
        torch._foreach_lerp_([here], [there], 0.5)
        WATCH.counting = False
        norm.to(GPU)
    moved = norm.weight is weight and weight.device == GPU and norm.running_mean is not mean
    return seen(1) | {"parameters_stay_and_buffers_do_not": moved}


def main(cases: Path, report: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # each run collects garbage, and need not look at the libraries again
    transformers.logging.set_verbosity_error()
    results = {"controls": controls()}
    for name, keys in json.loads(cases.read_text()).items():
        print(name, flush=True)  # the last one, should the process crash
        with tempfile.TemporaryDirectory() as folder:
            results[name] = train(keys, Path(folder))
    report.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
