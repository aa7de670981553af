"""A disk that fills up at any moment: one clear line, the earlier checkpoints whole, and the same
command resumes once there is room.
"""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from helpers.forked import ENDS_WITHIN, ForkedRun, call_at_path

from hf_cifar.training import checkpoints

KEYS = {"method": "lora", "ema_decay": 0.8, "save_total_limit": 2}
ROOM = "free some space"  # what the message advises


@pytest.fixture
def disk(tmp_path):
    """disk(kilobytes): the folder of a file system of that size; a second call resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def sized(kilobytes: int) -> Path:
        nonlocal mounted
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if mounted:
            options = ["-o", f"remount,size={kilobytes}k", str(folder)]
        try:
            done = subprocess.run(["mount", *options], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("a full disk is a tmpfs of a given size, and there is no `mount` here")
        if done.returncode:
            pytest.skip(f"a full disk is a tmpfs, which can't be mounted here: {done.stderr}")
        mounted = True
        return folder

    yield sized
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def assert_checkpoints_whole(run: ForkedRun) -> None:
    root = run.folder / "checkpoints"
    assert not (root / checkpoints.WRITING).exists()
    damages = [checkpoints.damage(path) for path in checkpoints.by_step(root).values()]
    assert not any(damages), damages


SIZES = [pytest.param(seed, marks=[] if seed < 2 else pytest.mark.slow) for seed in range(20)]


@pytest.mark.parametrize("seed", SIZES)
def test_a_run_folder_on_a_disk_of_any_size(seed, disk, tmp_path, tiny, undisturbed, tally):
    expected = undisturbed("vit", KEYS)
    run = ForkedRun(tmp_path / "at", tiny("vit"), KEYS, images=expected.cache)
    run.folder = disk(random.Random(seed).randrange(4, 700)) / "run"
    tally.add("full disk: run folder, at any byte")
    if code := run.run_to_end():
        line = run.one_line_error(code)
        assert "No space left on device" in line or "torch.save wrote only a part" in line, line
        assert ROOM in line or "name another folder" in line, line
        assert_checkpoints_whole(run)
        tally.all_ended("one clear error")
        disk(20000)
        tally.add("full disk: the same command, with room")
        assert run.run_to_end() == 0, run.output()
    assert run.outcome() == expected.outcome
    tally.all_ended("identical")


MOMENTS = {  # before which change of a file the disk fills up
    "recipe": "*/run/recipe.yaml*",
    "first checkpoint": "*/checkpoint-3",
    "third checkpoint": "*/checkpoint-9",
    "metrics": "*/run/.writing/metrics.json*",
    "adapter": "*/run/.writing/adapter",
    "model": "*/run/.writing/config.json*",
    "plots": "*/run/.writing/plots",
    "card": "*/run/.writing/README.md*",
    "list of files": "*/run/.hf_cifar.json*",
}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=[] if m == "third checkpoint" else pytest.mark.slow) for m in MOMENTS],
)
def test_a_run_folder_that_is_full_at(moment, processes, disk, tmp_path, tiny, undisturbed, tally):
    # Two processes with half the batch each make as many steps, and so as many checkpoints.
    keys = KEYS | {"per_device_train_batch_size": 8 // processes}
    expected = undisturbed("vit", keys, processes)
    run = ForkedRun(tmp_path / "at", tiny("vit"), keys, processes, expected.cache)
    folder = disk(20000)
    run.folder, run.drawing = folder / "run", moment == "plots"

    def prepare(rank: int) -> None:
        if rank == 0:
            call_at_path(folder, MOMENTS[moment], lambda: fill(folder))

    plural = "es" if processes > 1 else ""
    tally.add(f"full disk: run folder, at the {moment}, {processes} process{plural}")
    codes = run.wait(run.start(prepare), within=60 + ENDS_WITHIN)
    if processes == 1:
        assert ROOM in run.one_line_error(codes[0])
    else:
        lines = [line for line in run.output().splitlines() if line.startswith("hf-cifar: ")]
        assert codes[0] in (1, 2) and any(ROOM in line for line in lines), run.output()
    assert_checkpoints_whole(run)
    tally.all_ended("one clear error")
    (folder / "ballast").unlink()
    run.drawing = False
    tally.add("full disk: the same command, with room")
    assert run.run_to_end() == 0, run.output()
    assert run.outcome() == expected.outcome and (run.folder / "README.md").stat().st_size
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
    expected = undisturbed("vit", keys)
    run = ForkedRun(tmp_path / "at", tiny("vit"), keys)
    run.cache = disk(kilobytes) / "cache"
    tally.add(f"full disk: cache, {method}")
    if code := run.run_to_end():
        assert "set HF_CIFAR_CACHE" in run.one_line_error(code)
        tally.all_ended("one clear error")
        disk(40000)
        tally.add("full disk: the same command, with room")
        assert run.run_to_end() == 0, run.output()
    assert not list(run.cache.glob("features/*.tmp"))
    assert not [name for name in os.listdir(run.cache) if "partial" in name]
    assert run.outcome() == expected.outcome
    tally.all_ended("identical")
