"""Two processes give what one gives at the same global batch, and a finished run is returned by both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent


def launch(processes: int, recipe: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*start, "-m", "hf_cifar", "train", str(recipe), "--output_dir", str(folder), *words]
    return subprocess.run(command, env=env, cwd=folder.parent, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "linear", "full, with levers"])
def test_two_processes_give_what_one_gives(method: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    # A key's bias has no gradient but rounding (softmax does not see it), which Adam would blow up to its full step.
    optimizer = "optim: sgd\nlearning_rate: 0.05\n" if method.startswith("full") else "learning_rate: 1e-3\n"
    method, comma, _ = method.partition(",")
    levers = "mixup_alpha: 0.4\nema_decay: 0.8\nhead_epochs: 1\nrandom_erasing: 0.3\ntta: flip\n" if comma else ""
    recipe = tmp_path / "both.yaml"
    recipe.write_text(
        f"model_name_or_path: {tiny('vit')}\ndataset_name: sample\nmethod: {method}\nhead_init: default\nbf16: false\n"
        "channels_last: false\nvalidation_fraction: 0.1\nmax_train_samples: 200\nmax_eval_samples: 70\nnum_train_epochs: 2\n"
        f"logging_steps: 1\n{optimizer}{levers}disable_tqdm: true\nper_device_eval_batch_size: 16\n"
    )
    found = {}
    for processes, batch in ((1, "32"), (2, "16")):
        folder = tmp_path / f"run{processes}"
        done = launch(processes, recipe, folder, "--per_device_train_batch_size", batch)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test accuracy") == 1  # the first process speaks
        found[processes] = (json.loads((folder / "metrics.json").read_text()), load_file(folder / "model.safetensors"))
    (one, weights), (two, others) = found[1], found[2]
    for name, tensor in weights.items():
        assert (tensor - others[name]).abs().max() < 1e-5, name
    losses = [[e["loss"] for e in m["history"] if "loss" in e] for m in (one, two)]
    assert len(losses[0]) == one["global_step"] > 3 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert one["test_samples"] == two["test_samples"] == 70
    assert one["test_nll"] == pytest.approx(two["test_nll"], abs=1e-5)
    assert two["hardware"]["count"] == 2

    again = launch(2, recipe, tmp_path / "run2", "--per_device_train_batch_size", "16")
    assert again.returncode == 0 and "finished before" in again.stderr, again.stderr
