"""A run that was stopped and started again ends with the bits of one that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.runs import (
    CHECKPOINT_EVERY_3,
    assert_same_run,
    assert_same_weights,
    log_without_times,
)
from helpers.watching import AfterPrediction, Stopped, stop, stopped_in_step, trainer_callbacks

from hf_cifar.runs.run import Run

EVERYTHING = {
    "method": "lora",
    "bf16": True,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "max_train_samples": 27,
    "num_train_epochs": 2,
    "head_epochs": 0.5,
    "head_learning_rate": 0.01,
    "layer_decay": 0.8,
    "scale_learning_rate": "sqrt",
    "weight_decay": 0.05,
    "lora_dropout": 0.1,
    "dropout": 0.1,
    "label_smoothing_factor": 0.1,
    "mixup_alpha": 0.4,
    "cutmix_alpha": 1.0,
    "random_erasing": 0.25,
    "auto_augment": "trivialaugment",
    "image_size_schedule": [[0, 24], [1, 32]],
    "muon": True,
    "ema_decay": 0.8,
    "early_stopping_patience": 9,
    "temperature_scaling": True,
    "tta": "flip",
}


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("efficientnet", {}),  # batch norms, dropout
        ("vit", {"optim": "sgd", "label_smoothing_factor": 0.1, "lr_scheduler_type": "linear"}),
        ("resnet", {"method": "partial"}),
        ("vit", {"method": "lora", "lora_dropout": 0.2}),
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(family, keys, tiny, train):
    keys = CHECKPOINT_EVERY_3 | keys
    whole = train("whole", tiny(family), **keys)
    # Twice, after checkpoint 3 and then after 6, in one epoch and in the other; or once.
    for step in (5, 5) if family == "efficientnet" else (8,):
        with stopped_in_step(step):
            train("stopped", tiny(family), **keys)
    assert_same_run(whole, train("stopped", tiny(family), **keys))


def test_an_unfreezing_schedule_resumes_to_the_same_bits(tiny, train):
    keys = CHECKPOINT_EVERY_3 | {
        "unfreeze_every": 0.6,
        "num_train_epochs": 3,
        "ema_decay": 0.8,
        "mixup_alpha": 0.4,
        "muon": True,
    }
    whole = train("whole", tiny("vit"), **keys)
    for step in (4, 10):
        with stopped_in_step(step):
            train(f"stopped{step}", tiny("vit"), **keys)
        assert_same_run(whole, train(f"stopped{step}", tiny("vit"), **keys))


def test_all_levers_at_once_resume_to_the_same_bits(tiny, train):
    keys = CHECKPOINT_EVERY_3 | EVERYTHING
    whole = train("whole", tiny("vit"), **keys)
    with stopped_in_step(8):  # in the middle of a step at the last image size
        train("stopped", tiny("vit"), **keys)
    assert_same_run(whole, train("stopped", tiny("vit"), **keys))
    assert whole.metrics["precision"] == "bf16" and whole.metrics["temperature"] != 1


def test_a_damaged_checkpoint_is_skipped(tiny, train, tmp_path, caplog):
    whole = train("whole", tiny("vit"), **CHECKPOINT_EVERY_3)
    with stopped_in_step(8):
        train("stopped", tiny("vit"), **CHECKPOINT_EVERY_3)
    path = tmp_path / "stopped" / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level("INFO", "hf_cifar"):
        resumed = train("stopped", tiny("vit"), **CHECKPOINT_EVERY_3)
    assert "checkpoint-6: optimizer.pt is not what was written" in caplog.text
    assert "resuming from checkpoint-3" in caplog.text
    assert_same_weights(whole, resumed)


def test_a_run_that_stops_between_training_and_metrics_loses_nothing(tiny, train):
    whole = train("whole", tiny("vit"))
    with trainer_callbacks(AfterPrediction(stop)), pytest.raises(Stopped):
        train("stopped", tiny("vit"))
    assert_same_run(whole, train("stopped", tiny("vit")))


@pytest.mark.parametrize(
    "keys", [{"early_stopping_patience": 1, "early_stopping_threshold": 0.9}, {"max_steps": 7}]
)
def test_a_run_that_stopped_while_it_scored_trains_no_further(keys, tiny, train, tmp_path):
    keys = CHECKPOINT_EVERY_3 | {"eval_steps": 7, "save_steps": 7, "num_train_epochs": 4} | keys
    whole = train("whole", tiny("vit"), **keys, save_total_limit=9)
    with trainer_callbacks(AfterPrediction(stop)), pytest.raises(Stopped):
        train("stopped", tiny("vit"), **keys, save_total_limit=9)
    assert_same_run(whole, train("stopped", tiny("vit"), **keys, save_total_limit=9))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_to_the_same_bits(number, tiny, tmp_path, train):
    keys = CHECKPOINT_EVERY_3 | {
        "num_train_epochs": 20,
        "save_total_limit": 3,
        "eval_steps": 10,
        "save_steps": 10,
    }
    whole = train("whole", tiny("resnet"), **keys)
    folder, root = tmp_path / "killed", Path(__file__).parents[2]
    command = [sys.executable, "-m", "hf_cifar", "train", str(tmp_path / "whole.yaml")]
    command += ["--output_dir", str(folder)]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), err
    assert not (folder / "metrics.json").is_file()
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "resuming from" in done.stderr, done.stderr
    killed = Run(folder, json.loads((folder / "metrics.json").read_text()))
    assert_same_weights(whole, killed)
    # The signal's own checkpoint is evaluated too, so only the steps of the recipe are compared.
    evaluations = [
        [
            entry
            for entry in log_without_times(run.metrics)
            if "eval_accuracy" in entry and entry["step"] % 10 == 0
        ]
        for run in (whole, killed)
    ]
    assert evaluations[0] == evaluations[1]
