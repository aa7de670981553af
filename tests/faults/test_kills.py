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
from helpers.forked import ENDS_WITHIN, Place, at_write, die, quick_plots

from hf_cifar.training import checkpoints

EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch"}
CASES = {
    "full, EMA, mixup": ("vit", {"ema_decay": 0.8, "mixup_alpha": 0.4, "save_total_limit": 1}),
    "linear": (
        "vit",
        {"method": "linear", "probe_learning_rates": [0.001, 0.01], "feature_views": 2},
    ),
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
TWICE = 3  # every how many-th trial has two processes


def two(seed: int) -> bool:
    return seed % TWICE == TWICE - 1


SEEDS = [pytest.param(seed, marks=[] if seed < QUICK else pytest.mark.slow) for seed in range(ALL)]


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_and_started_again(seed, tiny, tmp_path, undisturbed, tally):
    draw = random.Random(seed)
    name = list(CASES)[seed % len(CASES)]
    family, keys = CASES[name]
    processes = 2 if two(seed) else 1
    want = undisturbed(family, keys, processes)
    place = Place(tmp_path / "at", tiny(family), keys, processes, want.cache if seed % 4 else None)
    kills, share = (
        draw.randint(2, 4),
        1.0,
    )  # of what the whole run takes; less is left to do after each kill
    while kills:
        victim = draw.randrange(processes)
        if draw.random() < 0.5:
            operation, delay = draw.randint(1, 1 + int(share * want.operations[victim])), None
        else:
            operation, delay = -1, draw.uniform(0, share * want.seconds)

        def hook(rank: int, victim: int = victim, operation: int = operation) -> None:
            quick_plots()
            if rank == victim:
                at_write(place, operation, die)

        pids = place.start(hook)
        if delay is not None:
            time.sleep(delay)
            os.kill(pids[victim], signal.SIGKILL)
        codes = place.end(pids, within=ENDS_WITHIN + (0 if delay is not None else 60))
        if codes[victim] != -signal.SIGKILL:  # it was done before
            assert set(codes.values()) == {0} and place.result() == want.result, place.said()
            shutil.rmtree(place.run)
            share *= 0.7
            continue
        kills -= 1
        tally.tried_one(f"SIGKILL, {processes} process{'es' if processes > 1 else ''}: {name}")
        trained = str(want.result["numbers"]["global_step"]) in str(
            checkpoints.last_good(place.run / "checkpoints")[0]
        )
        assert trained or 0 not in codes.values(), (
            codes,
            place.said(),
        )  # the first process writes what is left, alone
        for path in (place.run / "checkpoints").glob("checkpoint-*"):
            assert checkpoints.damage(path) is None, path
    assert place.go(lambda _: quick_plots()) == 0, place.said()
    assert place.result() == want.result
    left = {p.name for p in place.run.iterdir()} | {
        p.name for p in (place.run / "checkpoints").iterdir()
    }
    assert not [
        name for name in left if name.startswith(".") or name.endswith((".part", ".partial"))
    ], left
    tally.all_ended("identical")


def real(place: Place) -> list[str]:
    start = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        if place.processes > 1
        else []
    )
    return [sys.executable, *start, "-m", "hf_cifar", *place.words]


def processes_of(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_real_processes(seed, tiny, tmp_path, undisturbed, tally):
    """By the command, of two processes by a launcher, which may be killed itself."""
    draw, processes = random.Random(seed), 1 + seed % 2
    family, keys = CASES["full, EMA, mixup"]
    want = undisturbed(family, keys, processes)
    place = Place(tmp_path / "at", tiny(family), keys, processes, want.cache)
    env = os.environ | {
        "HF_CIFAR_CACHE": str(place.cache),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }

    def start() -> subprocess.Popen:
        with place.log.open("w") as log:
            return subprocess.Popen(real(place), env=env, cwd=tmp_path, stdout=log, stderr=log)

    first = start()
    root = place.run / "checkpoints"
    while first.poll() is None and not (root / "checkpoint-3").is_dir():
        time.sleep(0.005)
    time.sleep(draw.uniform(0, 0.3))
    family_tree = processes_of(first.pid)
    draw.choice(family_tree).kill()
    tally.tried_one(f"SIGKILL, {processes} process{'es' if processes > 1 else ''}: the command")
    code = first.wait(timeout=ENDS_WITHIN + 10)
    assert code != 0
    psutil.wait_procs(family_tree, timeout=ENDS_WITHIN)
    assert not [p for p in family_tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert start().wait(timeout=300) == 0, place.said()
    assert "resuming from" in place.said() or "finished before" in place.said(), place.said()
    assert place.result() == want.result
    tally.all_ended("identical")


def test_a_second_run_in_the_folder_is_refused_and_a_killed_one_is_not_in_the_way(
    tiny, tmp_path, tally
):
    place = Place(tmp_path / "at", tiny("vit"), {"max_steps": 2})
    first = place.start(
        lambda _: at_write(place, 8, lambda: os.kill(os.getpid(), signal.SIGSTOP)) and None
    )
    while psutil.Process(first[0]).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    tally.tried_one("a second run in one folder")
    second = place.go()
    assert "another process is training here" in place.ended_in_one_line(second)
    tally.all_ended("one clear error")
    os.kill(first[0], signal.SIGKILL)
    place.end(first)
    tally.tried_one("a killed run's lock")
    assert place.go(lambda _: quick_plots()) == 0, place.said()
    tally.all_ended("identical")
