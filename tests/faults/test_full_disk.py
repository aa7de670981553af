"""A disk that is full, at any moment: one clear line, the earlier checkpoints whole, and the same
command goes on with room.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from helpers.forked import ENDS_WITHIN, Place, quick_plots

import hf_cifar.runs.run
from hf_cifar.runs import stages
from hf_cifar.training import checkpoints
from hf_cifar.training.trainer import CifarTrainer

KEYS = {"method": "lora", "ema_decay": 0.8, "save_total_limit": 2}


@pytest.fixture
def disk(tmp_path):
    """disk(kilobytes): a file system of that size, or the same one made larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def sized(kilobytes: int) -> Path:
        nonlocal mounted
        how = ["-o", f"remount,size={kilobytes}k", str(folder)]
        how = how if mounted else ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(["mount", *how], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("a full disk is a tmpfs of a given size, and there is no `mount` here")
        if done.returncode:
            pytest.skip(
                f"a full disk is a tmpfs of a given size, which may not be mounted here: {done.stderr.strip()}"
            )
        mounted = True
        return folder

    yield sized
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no byte."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def all_whole(place: Place) -> None:
    root = place.run / "checkpoints"
    assert not (root / checkpoints.WRITING).exists()
    assert not [
        wrong for path in checkpoints.steps(root).values() if (wrong := checkpoints.damage(path))
    ]


SIZES = [pytest.param(seed, marks=[] if seed < 2 else pytest.mark.slow) for seed in range(20)]


@pytest.mark.parametrize("seed", SIZES)
def test_a_run_folder_on_a_disk_of_any_size(seed, disk, tmp_path, tiny, undisturbed, tally):
    want = undisturbed("vit", KEYS)
    place = Place(tmp_path / "at", tiny("vit"), KEYS, images=want.cache)
    place.run = disk(random.Random(seed).randrange(4, 700)) / "run"
    code = place.go(lambda _: quick_plots())
    if code:
        tally.tried_one("full disk: run folder, at any byte")
        line = place.ended_in_one_line(code)
        assert "No space left on device" in line or "torch.save wrote a part" in line, line
        assert "make room" in line or "name another folder" in line
        all_whole(place)
        tally.all_ended("one clear error")
        disk(20000)
        tally.tried_one("full disk: the same command, with room")
        assert place.go(lambda _: quick_plots()) == 0, place.said()
    else:
        tally.tried_one("full disk: run folder, at any byte")
    assert place.result() == want.result
    tally.all_ended("identical")


STAGES = {
    "recipe": (hf_cifar.runs.run, "_claim", 1),
    "first checkpoint": (CifarTrainer, "_save_checkpoint", 1),
    "third checkpoint": (CifarTrainer, "_save_checkpoint", 3),
    "predictions": (report, "write_predictions", 1),
    "model": (stages.WholeModel, "save_model", 1),
    "plots": (report, "write_plots", 1),
    "card": (report, "write_card", 1),
}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "stage",
    [pytest.param(s, marks=[] if s == "third checkpoint" else pytest.mark.slow) for s in STAGES],
)
def test_a_run_folder_that_is_full_at(stage, processes, disk, tmp_path, tiny, undisturbed, tally):
    keys = KEYS | {
        "per_device_train_batch_size": 8 // processes
    }  # as many steps, and so as many checkpoints
    want = undisturbed("vit", keys, processes)
    place = Place(tmp_path / "at", tiny("vit"), keys, processes, want.cache)
    folder = disk(20000)
    place.run = folder / "run"
    owner, name, turn = STAGES[stage]

    def hook(rank: int) -> None:
        if name != "write_plots":
            quick_plots()
        original, calls = getattr(owner, name), []

        def full(*args, **kwargs):
            calls.append(0)
            if len(calls) == turn and rank == 0:
                fill(folder)
            return original(*args, **kwargs)

        setattr(owner, name, full)

    tally.tried_one(
        f"full disk: run folder, at the {stage}, {processes} process{'es' if processes > 1 else ''}"
    )
    codes = place.end(place.start(hook), within=60 + ENDS_WITHIN)
    if processes == 1:
        assert "make room" in place.ended_in_one_line(codes[0])
    else:
        lines = [line for line in place.said().splitlines() if line.startswith("hf-cifar: ")]
        assert codes[0] in (1, 2) and [line for line in lines if "make room" in line], place.said()
    all_whole(place)
    tally.all_ended("one clear error")
    (folder / "ballast").unlink()
    tally.tried_one("full disk: the same command, with room")
    assert place.go(lambda _: quick_plots()) == 0, place.said()
    assert place.result() == want.result and (place.run / "README.md").stat().st_size
    tally.all_ended("identical")


CACHES = [
    (method, size)
    for method in ("linear", "partial")
    for size in (1, 100, 4000, 7000, 9400, 9420, 9600)
]


@pytest.mark.parametrize(
    ("method", "kilobytes"),
    [pytest.param(*c, marks=[] if i == 2 else pytest.mark.slow) for i, c in enumerate(CACHES)],
)
def test_a_cache_on_a_small_disk(method, kilobytes, disk, tmp_path, tiny, undisturbed, tally):
    keys = {"method": method, "feature_views": 1}
    want = undisturbed("vit", keys)
    place = Place(tmp_path / "at", tiny("vit"), keys)
    place.cache = disk(kilobytes) / "cache"
    tally.tried_one(f"full disk: cache, {method}")
    code = place.go(lambda _: quick_plots())
    if code:
        assert "set HF_CIFAR_CACHE" in place.ended_in_one_line(code)
        tally.all_ended("one clear error")
        disk(40000)
        tally.tried_one("full disk: the same command, with room")
        assert place.go(lambda _: quick_plots()) == 0, place.said()
    assert not list(place.cache.glob("features/*.tmp")) and not [
        p for p in os.listdir(place.cache) if "partial" in p
    ]
    assert place.result() == want.result
    tally.all_ended("identical")
