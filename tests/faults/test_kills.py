"""SIGKILL at random moments, and the same command again: the run ends with the bits of one that was
never stopped.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.forked import (
    ENDS_WITHIN,
    ForkedRun,
    call_at_change,
    call_at_path,
    kill_this_process,
)

from hf_cifar.runs.folder import MARKER
from hf_cifar.training import checkpoints

EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch"}
CASES = {
    "full, EMA, mixup": ("vit", {"ema_decay": 0.8, "mixup_alpha": 0.4, "save_total_limit": 1}),
    "linear": ("vit", {"method": "linear", "feature_views": 2}),
    "lora, dropout, every epoch": ("vit", EPOCHS | {"method": "lora", "lora_dropout": 0.2}),
    "partial on hidden states": (
        "vit",
        {"method": "partial", "feature_views": 1, "save_total_limit": 2},
    ),
    "full, batch norms, accumulation": (
        "resnet",
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ),
    "full, unfreezing, EMA": (
        "vit",
        {"unfreeze_every": 0.5, "ema_decay": 0.9, "save_steps": 1, "eval_steps": 1},
    ),
    "full, resizing, Muon": (
        "vit",
        {"image_size_schedule": [[0, 16], [1, 32]], "muon": True, "save_total_limit": 1},
    ),
    "full, early stopping": (
        "vit",
        {"early_stopping_patience": 2, "num_train_epochs": 4, "learning_rate": 0.05},
    ),
}
QUICK, ALL = 4, 42  # trials, of two to four kills each


def processes_of(seed: int) -> int:
    """Return how many processes a trial has: every third one has two."""
    return 2 if seed % 3 == 2 else 1


def kind_of(processes: int, name: str) -> str:
    return f"SIGKILL, {processes} process{'es' if processes > 1 else ''}: {name}"


SEEDS = [pytest.param(seed, marks=[] if seed < QUICK else pytest.mark.slow) for seed in range(ALL)]


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_and_started_again(seed, tiny, tmp_path, undisturbed, tally):
    draw = random.Random(seed)
    name = list(CASES)[seed % len(CASES)]
    family, keys = CASES[name]
    processes = processes_of(seed)
    expected = undisturbed(family, keys, processes)
    images = expected.cache if seed % 4 else None
    run = ForkedRun(tmp_path / "at", tiny(family), keys, processes, images)
    last_step = expected.outcome["metrics"].get("global_step")
    kills = draw.randint(2, 4)
    share = 1.0  # of an undisturbed run, within which the kill comes; each start has less to do
    while kills:
        victim = draw.randrange(processes)
        change, delay = -1, None
        if draw.random() < 0.5:
            change = draw.randint(1, 1 + int(share * expected.changes[victim]))
        else:
            delay = draw.uniform(0, share * expected.seconds)

        def prepare(rank: int, victim: int = victim, change: int = change) -> None:
            if rank == victim:
                call_at_change(run.root, change, kill_this_process)

        pids = run.start(prepare)
        if delay is not None:
            time.sleep(delay)
            os.kill(pids[victim], signal.SIGKILL)
        codes = run.wait(pids, within=ENDS_WITHIN + (0 if delay is not None else 60))
        if codes[victim] != -signal.SIGKILL:  # it had ended before
            assert set(codes.values()) == {0}, run.output()
            assert run.outcome() == expected.outcome
            shutil.rmtree(run.folder)
            share *= 0.7
            continue
        kills -= 1
        tally.add(kind_of(processes, name))
        good, _ = checkpoints.last_good(run.folder / "checkpoints")
        # A linear probe has no steps and no checkpoints.
        trained = last_step is None or (good and good.name == f"checkpoint-{last_step}")
        # Once training has ended, the first process writes what is left without the others.
        assert trained or 0 not in codes.values(), (codes, run.output())
        for path in (run.folder / "checkpoints").glob("checkpoint-*"):
            assert checkpoints.damage(path) is None, path
    assert run.run_to_end() == 0, run.output()
    assert run.outcome() == expected.outcome
    folders = [path for path in (run.folder, run.folder / "checkpoints") if path.is_dir()]
    left = {path.name for folder in folders for path in folder.iterdir()}
    hidden = {name for name in left if name.startswith(".") or name.endswith(".tmp")}
    assert hidden == {MARKER}, left
    tally.all_ended("identical")


@pytest.mark.parametrize("name", [MARKER, "recipe.yaml"])
def test_killed_while_a_file_of_the_run_is_written(name, tiny, tmp_path, undisturbed, tally):
    expected = undisturbed("vit", {"max_steps": 2})
    run = ForkedRun(tmp_path / "at", tiny("vit"), {"max_steps": 2})

    def kill_at_rename(_: int) -> None:  # the temporary file is opened, and then renamed
        call_at_path(run.folder, f"*/{name}.*.tmp", kill_this_process, change=2)

    tally.add("SIGKILL, 1 process: a file half written")
    assert run.run_to_end(kill_at_rename) == -signal.SIGKILL
    assert list(run.folder.glob(f"{name}.*.tmp"))
    assert run.run_to_end() == 0, run.output()
    assert run.outcome() == expected.outcome
    assert not [path for path in run.folder.iterdir() if path.suffix == ".tmp"]
    tally.all_ended("identical")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_command_is_killed(seed, tiny, tmp_path, undisturbed, tally):
    """Real commands; one of two processes is started by a launcher, which may be killed itself."""
    draw, processes = random.Random(seed), 1 + seed % 2
    family, keys = CASES["full, EMA, mixup"]
    expected = undisturbed(family, keys, processes)
    run = ForkedRun(tmp_path / "at", tiny(family), keys, processes, expected.cache)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"HF_CIFAR_CACHE": str(run.cache), "PYTHONPATH": root}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "hf_cifar", *run.words]

    def start() -> subprocess.Popen:
        with run.log.open("w") as log:
            return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)

    first = start()
    while first.poll() is None and not (run.folder / "checkpoints" / "checkpoint-3").is_dir():
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.3))
    parent = psutil.Process(first.pid)
    running = [parent, *parent.children(recursive=True)]
    draw.choice(running).kill()
    tally.add(kind_of(processes, "the command"))
    assert first.wait(timeout=ENDS_WITHIN + 10) != 0
    psutil.wait_procs(running, timeout=ENDS_WITHIN)
    assert not [p for p in running if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert start().wait(timeout=300) == 0, run.output()
    assert "resuming from" in run.output() or "finished before" in run.output(), run.output()
    assert run.outcome() == expected.outcome
    tally.all_ended("identical")


def test_a_second_run_in_the_folder_is_refused_and_a_killed_one_is_not_in_the_way(
    tiny, tmp_path, tally
):
    run = ForkedRun(tmp_path / "at", tiny("vit"), {"max_steps": 2})

    def pause() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    first = run.start(lambda _: call_at_change(run.root, 8, pause))
    while psutil.Process(first[0]).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    tally.add("a second run in one folder")
    assert "another process is training here" in run.one_line_error(run.run_to_end())
    tally.all_ended("one clear error")
    os.kill(first[0], signal.SIGKILL)
    run.wait(first)
    tally.add("a killed run's lock")
    assert run.run_to_end() == 0, run.output()
    tally.all_ended("identical")
