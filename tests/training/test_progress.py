"""Progress as people see it: a bar on a terminal, lines in a file."""

import contextlib
import os
import pty
import re
import sys
import termios
from types import SimpleNamespace

import pytest
import torch
from helpers.command import start_hf_cifar
from helpers.runs import write_recipe
from transformers import TrainerControl, TrainerState

from hf_cifar.training.progress import ProgressLines, Speed, image_progress, training_progress


def test_lines_where_standard_error_is_no_terminal(capsys):
    speed = Speed()
    lines = training_progress(speed)
    assert isinstance(lines, ProgressLines)
    state, control = TrainerState(max_steps=10, epoch=0.0, is_world_process_zero=True), None
    lines.on_train_begin(None, state, control)
    speed.images_per_step = 8
    state.global_step, state.epoch = 4, 0.5
    lines.on_log(None, state, control, logs={"loss": 1.25, "learning_rate": 1e-3})
    lines.on_log(None, state, control, logs={"eval_loss": 0.5, "eval_accuracy": 0.75})
    lines.on_log(None, state, control, logs={"train_runtime": 3.0})
    state.is_world_process_zero = False
    lines.on_log(None, state, control, logs={"loss": 1.25, "learning_rate": 1e-3})
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"step 4 of 10, epoch 0\.50, loss 1\.2500, lr 1\.00e-03, \d+ images/s, 0:00:00 left", first
    )
    assert second == "step 4, epoch 0.50: validation accuracy 0.7500, loss 0.5000"


def test_a_pass_over_images_writes_ten_lines(capsys):
    with image_progress("features", 1050, enabled=True) as progress:
        for _ in range(105):
            progress.update(10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1] == "features: 1,050 of 1,050 images, 0:00:00 left"
    with image_progress("features", 20, enabled=False) as progress:
        progress.update(20)
    with image_progress("features", 0, enabled=True):
        pass
    assert capsys.readouterr().err == ""


def test_a_log_that_is_full_does_not_stop_a_training(monkeypatch):
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        with image_progress("features", 10, enabled=True) as progress:
            progress.update(10)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_steady_speed_leaves_out_the_first_quarter_and_what_is_no_training():
    speed, control = Speed(), TrainerControl()
    args = SimpleNamespace(device=torch.device("cpu"), gradient_accumulation_steps=2, world_size=3)
    state = TrainerState(train_batch_size=4)
    speed.on_train_begin(args, state, control)
    assert speed.images_per_step == 24 and speed.steady() is None
    speed.spans = [(0.0, 9.0), (9.0, 10.0), (20.0, 21.0), (21.0, 22.0)]
    assert speed.steady() == 24.0
    speed.last = 5.0
    speed.on_evaluate(args, state, control)
    assert speed.last is None


@pytest.mark.slow
def test_a_bar_on_a_terminal(tiny, tmp_path):
    recipe = write_recipe(
        tmp_path / "mine.yaml",
        tiny("vit"),
        output_dir=str(tmp_path / "run"),
        disable_tqdm=False,
    )
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    process = start_hf_cifar(
        "train", recipe, stderr=theirs, environment={"TQDM_DISABLE": "", "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so where the other side is closed
            break
        if not part:
            break
        shown += part
    assert process.wait(timeout=100) == 0, shown.decode()
    text = shown.decode()
    assert re.search(r"10/10 .*epoch 2\.00, loss \d\.\d+, lr \d\.\d+e-\d+, \d+ images/s", text)
    assert "validation accuracy" in text and "'loss'" not in text
