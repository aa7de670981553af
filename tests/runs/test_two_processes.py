"""Two processes give what one gives at the same global batch, fail together, stop together and
resume from where they were.
"""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from helpers.launching import finish, launch
from helpers.numbered_scoring import BATCH_SIZES, score_numbers
from safetensors.torch import load_file

KEYS: dict[str, Any] = {
    "dataset_name": "sample",
    "head_init": "default",
    "bf16": False,
    "channels_last": False,
    "validation_fraction": 0.1,
    "max_train_samples": 180,
    "max_eval_samples": 70,
    "num_train_epochs": 2,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 16,
    "unfreeze_blocks": 1,
    "lora_r": 2,
    "disable_tqdm": True,
}
# A key's bias has no gradient but rounding (softmax does not see it), which Adam would blow up to
# its full step.
SGD = {"optim": "sgd", "learning_rate": 0.05}
LEVERS = {
    "mixup_alpha": 0.4,
    "ema_decay": 0.8,
    "head_epochs": 1,
    "random_erasing": 0.3,
    "tta": "flip",
}
AS_ONE = {  # trained by one process and by two
    "full": SGD,
    "lora": {"method": "lora"},
    "linear": {"method": "linear"},
    "partial": SGD
    | {"method": "partial", "random_resized_crop_scale": None, "horizontal_flip": 0.0},
    "levers": SGD | LEVERS,
    # 180 images are 11 batches of 16, of which one process has an odd one at the end, and two have
    # none.
    "accumulated": SGD | {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2},
    "mixed": SGD
    | {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "label_smoothing_factor": 0.1,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "auto_augment": "trivialaugment",
        "image_size_schedule": [[0, 16], [1, 32]],
    },
    "semi-supervised": SGD
    | {
        "objective": "semi_supervised",
        "train_samples_per_class": 7,
        "max_train_samples": None,
        "unlabelled_ratio": 2,
        "unlabelled_threshold": 0.15,  # which about half of the answers reach
    },
    "by loss": SGD | {"metric_for_best_model": "loss"},
}
TWICE: dict[str, dict[str, Any]] = {  # trained twice by two processes
    "lora, dropout": {"method": "lora", "lora_dropout": 0.2},
    "frozen groups": {"freeze_groups": ["norms", "embeddings"], "dropout": 0.1},
    "gradual": {"unfreeze_every": 0.5, "gradient_accumulation_steps": 2},
    "convnext": {"drop_path_rate": 0.3},
    "partial, dropout": {"method": "partial", "dropout": 0.1},
    "resnet": {"validation_fraction": 0.0},
    "resnet, averaged": {"ema_decay": 0.8, "head_epochs": 1},
    "resnet, lora": {"method": "lora", "validation_fraction": 0.0},
}


def write_recipe(path: Path, model: Path, keys: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(KEYS | {"model_name_or_path": str(model)} | keys))
    return path


def family_of(name: str) -> str:
    return name.split(",")[0] if name.startswith(("resnet", "convnext")) else "vit"


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "both.yaml"
    return write_recipe(path, tiny("vit"), SGD | {"per_device_train_batch_size": 16})


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> dict[int, Path]:
    """Folders of the runs of AS_ONE by one and by two processes and, by two, those of TWICE."""
    root = tmp_path_factory.mktemp("trained")
    folders = {processes: root / str(processes) for processes in (1, 2)}
    for processes, folder in folders.items():
        folder.mkdir()
        for name, keys in (AS_ONE | TWICE if processes == 2 else AS_ONE).items():
            whole = KEYS | keys
            shared = "per_device_train_batch_size"
            if name in AS_ONE and "gradient_accumulation_steps" in whole:
                shared = "gradient_accumulation_steps"
            share = {shared: whole[shared] // processes}
            for title in (name, f"{name} again") if name in TWICE else (name,):
                write_recipe(folder / f"{title}.yaml", tiny(family_of(name)), keys | share)
    running = [launch(n, "train_folder", str(folder)) for n, folder in folders.items()]
    for process in running:
        code, _, err = finish(process)
        assert code == 0, err[-5000:]
    return folders


def launch_pair(
    recipe: Path, folder: Path, *words: str, trouble: str = "", options: tuple[str, ...] = ()
) -> tuple[int, str, str]:
    """Train in two processes; return exit code, stdout and stderr."""
    line = ("train", str(recipe), "--output_dir", str(folder), *words)
    return finish(launch(2, "train_with_trouble", *line, options=options, TROUBLE=trouble))


@pytest.fixture(scope="module")
def uninterrupted(recipe, tmp_path_factory) -> tuple[Path, str, str]:
    """A run of two processes, its stdout and its stderr."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, out, err = launch_pair(recipe, folder)
    assert code == 0, err
    return folder, out, err


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def weights_of(run: Path) -> dict[str, Any]:
    return load_file(run / "model.safetensors")


def assert_same_training(run: Path, other: Path) -> None:
    """Assert the same weights and losses, to the bit."""
    ours, theirs = weights_of(run), weights_of(other)
    assert ours.keys() == theirs.keys()
    assert all(bool((tensor == theirs[name]).all()) for name, tensor in ours.items())
    losses = [[e["loss"] for e in metrics_of(r)["history"] if "loss" in e] for r in (run, other)]
    assert losses[0] == losses[1]


def no_process_of(folder: Path) -> bool:
    """Return whether no running process names the folder in its command line."""
    processes = psutil.process_iter(["cmdline"])
    return not any(str(folder) in " ".join(p.info["cmdline"] or []) for p in processes)


def own_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("hf-cifar: ")]


# ---- the same as one process ----


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_ONE)
def test_two_processes_give_what_one_gives(name, trained):
    one, two = (metrics_of(trained[processes] / name) for processes in (1, 2))
    weights, others = (weights_of(trained[processes] / name) for processes in (1, 2))
    assert all((tensor - others[n]).abs().max() < 1e-5 for n, tensor in weights.items())
    assert one["test_nll"] == pytest.approx(two["test_nll"], abs=1e-5)
    assert one["test_samples"] == two["test_samples"] == 70
    assert two["hardware"]["count"] == 2
    if name == "linear":
        return
    for key in ("loss", "eval_loss", "eval_accuracy"):
        values = [[entry[key] for entry in m["history"] if key in entry] for m in (one, two)]
        assert len(values[0]) >= 2 and values[0] == pytest.approx(values[1], abs=1e-5)
    assert one["global_step"] == two["global_step"] == 10 and one["best_step"] == two["best_step"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_both_processes_end_with_one_model_and_again(name, trained):
    digests = [json.loads((trained[2] / f"digests{rank}.json").read_text()) for rank in (0, 1)]
    assert digests[0][name] == digests[1][name] == digests[0][f"{name} again"]
    assert_same_training(trained[2] / name, trained[2] / f"{name} again")


def test_every_sample_is_scored_once(tmp_path):
    code, _, err = finish(launch(2, "score_numbers", str(tmp_path)))
    assert code == 0, err
    alone = score_numbers(tmp_path)
    assert len(alone) == 2 * sum(4 * size + 2 for size in BATCH_SIZES)
    for rank in (0, 1):
        shared = np.load(tmp_path / f"scores{rank}.npz")
        assert set(shared) == set(alone)
        for name, values in alone.items():
            if name.endswith("loss"):
                np.testing.assert_allclose(shared[name], values, rtol=1e-5)
                np.testing.assert_allclose(*shared[name], rtol=1e-5)  # the loss is the NLL
            else:
                assert np.array_equal(shared[name], values)
                assert values[:, 0].tolist() == list(range(len(values)))


# ---- only the first process speaks, one error ends them all ----


@pytest.mark.slow
def test_the_first_process_speaks_and_both_return_a_finished_run(uninterrupted, recipe):
    folder, out, err = uninterrupted
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["test", "model", "card", "plots", "metrics"]
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == len(set(lines)) and "processes: 2 (MULTI_CPU)" in lines
    code, _, err = launch_pair(recipe, folder)
    assert code == 0 and err.count("finished before") == 1, err


OUT_OF_MEMORY = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("unreadable 1", r"hf-cifar: process 1: .*HF_CIFAR_CACHE.*"),
        pytest.param("unreadable any", r".*HF_CIFAR_CACHE.*", marks=pytest.mark.slow),
        pytest.param("raise 1", f".*{re.escape(OUT_OF_MEMORY)}", marks=pytest.mark.slow),
        pytest.param("raise 0", f".*{re.escape(OUT_OF_MEMORY)}", marks=pytest.mark.slow),
    ],
)
def test_one_error_ends_all_processes_and_is_what_is_read_last(trouble, message, recipe, tmp_path):
    code, out, err = launch_pair(recipe, tmp_path / "run", trouble=trouble)
    assert code != 0 and not out and no_process_of(tmp_path / "run")
    told = [line for line in err.splitlines() if line.strip().startswith("traceback :")]
    assert re.search(f"{message}$", told[-1]), err
    others = [line for line in own_lines(err) if "another process" in line]
    assert len(others) <= 1 and "checkpoint saved" not in err
    # torchrun's own, and that of an error which is no user's fault.
    assert err.count("Traceback") == 1 + trouble.startswith("raise"), err
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
def test_a_first_process_that_works_on_alone_is_not_timed_out(uninterrupted, recipe, tmp_path):
    code, out, err = launch_pair(recipe, tmp_path / "run", "--ddp_timeout", "8", trouble="slow 0")
    assert code == 0 and "test accuracy" in out, err
    assert_same_training(tmp_path / "run", uninterrupted[0])


# ---- stopped and started again ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "name"),
    [
        (f"signal 0 {int(signal.SIGTERM)} launcher", "SIGTERM"),
        (f"signal 0 {int(signal.SIGINT)} launcher", "SIGINT"),
        (f"signal 1 {int(signal.SIGTERM)} itself", "SIGTERM"),
    ],
)
def test_a_signal_stops_all_at_a_checkpoint_and_the_run_resumes_to_the_same_bits(
    trouble, name, uninterrupted, recipe, tmp_path
):
    run = tmp_path / "run"
    code, out, err = launch_pair(recipe, run, trouble=trouble)
    assert code != 0 and not out and no_process_of(run)
    (saved,) = (path.name for path in (run / "checkpoints").glob("checkpoint-*"))
    assert saved != "checkpoint-5"  # it lies between the ends of two epochs
    line = f"hf-cifar: {name}: {saved} is saved; run the same command to resume from it"
    assert own_lines(err) == [line], err
    code, _, err = launch_pair(recipe, run)
    assert code == 0 and f"resuming from {saved}" in err, err
    assert_same_training(run, uninterrupted[0])


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_to_the_same_bits(uninterrupted, recipe, tmp_path):
    restart = ("--max_restarts", "1")
    code, out, err = launch_pair(recipe, tmp_path / "run", trouble="die 1", options=restart)
    assert code == 0 and "test accuracy" in out, err
    assert "resuming from checkpoint-5" in err
    assert_same_training(tmp_path / "run", uninterrupted[0])
