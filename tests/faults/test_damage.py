"""Files that were cut or altered: they are found, named and passed over or made anew, and the run's
bits stay the same.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.forked import Place, die, quick_plots

from hf_cifar.features.store import Entry, load_entry
from hf_cifar.training import checkpoints

FILES = (
    "carried.json",
    "checksums.json",
    "config.json",
    "ema.safetensors",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "trainer_state.json",
)
KEYS = {"ema_decay": 0.8, "save_total_limit": None}
HARMS = ("cut", "bit", "zeros", "removed")


def harm(path: Path, how: str, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[draw.randrange(len(data)) :]
    elif how == "bit":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == "zeros":
        first = draw.randrange(len(data))
        data[first : first + 4096] = bytes(len(data[first : first + 4096]))
    path.unlink() if how == "removed" else path.write_bytes(data)


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory, undisturbed):
    """A run that was killed after its last checkpoint, and what it would have come to."""
    want = undisturbed("vit", KEYS)
    place = Place(tmp_path_factory.mktemp("stopped") / "at", tiny("vit"), KEYS, images=want.cache)

    def hook(_: int) -> None:
        quick_plots()
        from hf_cifar.reporting import predictions

        predictions.write_predictions = lambda *_: die()  # type: ignore[assignment]

    assert place.go(hook) == -9
    assert list(checkpoints.steps(place.run / "checkpoints")) == [3, 6, 9, 10]
    return place, want


def again(stopped, tmp_path, tiny):
    """A copy of the stopped run in a place of its own."""
    old, want = stopped
    place = Place(tmp_path / "at", tiny("vit"), KEYS, images=want.cache)
    shutil.copytree(old.run, place.run)
    return place, want


CHECKPOINT = [(name, how) for name in FILES for how in HARMS]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(*c, marks=[] if i % 9 == 4 else pytest.mark.slow)
        for i, c in enumerate(CHECKPOINT)
    ],
)
def test_a_file_of_the_newest_checkpoint(name, how, stopped, tmp_path, tiny, tally):
    place, want = again(stopped, tmp_path, tiny)
    newest = place.run / "checkpoints" / "checkpoint-10"
    assert {p.name for p in newest.iterdir()} == set(FILES)
    before = (newest / name).read_bytes()
    tally.tried_one(f"checkpoint: {how}")
    harm(newest / name, how, random.Random(f"{name} {how}"))
    assert place.go(lambda _: quick_plots()) == 0, place.said()
    if how != "zeros" or b"\0" * 4096 not in before:  # some may be zeros as they are
        assert "checkpoint-10: " in place.said() and "resuming from checkpoint-9" in place.said(), (
            place.said()
        )
    assert place.result() == want.result
    tally.all_ended("identical")


@pytest.mark.parametrize("how", HARMS)
def test_the_best_checkpoint_though_it_is_not_the_newest(how, stopped, tmp_path, tiny, tally):
    """The run ends with its weights, so that it can't go on from one that names it."""
    place, want = again(stopped, tmp_path, tiny)
    best = place.run / "checkpoints" / f"checkpoint-{want.result['numbers']['best_step']}"
    assert best.name != "checkpoint-10"
    tally.tried_one(f"best checkpoint: {how}")
    harm(best / "model.safetensors", how, random.Random(how))
    assert place.go(lambda _: quick_plots()) == 0, place.said()
    assert f"in {best.name}, the best then; passed over" in place.said()
    assert place.result() == want.result
    tally.all_ended("identical")


def test_the_best_checkpoint_is_gone(stopped, tmp_path, tiny, tally):
    place, want = again(stopped, tmp_path, tiny)
    shutil.rmtree(place.run / "checkpoints" / f"checkpoint-{want.result['numbers']['best_step']}")
    tally.tried_one("best checkpoint: removed whole")
    assert "the best checkpoint: is missing" in place.ended_in_one_line(
        place.go(lambda _: quick_plots())
    )
    tally.all_ended("one clear error")


def folders(root: Path, *steps: int) -> None:
    for step in steps:
        (root / f"checkpoint-{step}").mkdir(parents=True)


@pytest.mark.parametrize(
    ("there", "keep", "written", "best", "left"),
    [
        ([3, 6, 9], 1, 9, None, [9]),
        ([3, 6, 9], 2, 9, "checkpoint-3", [3, 9]),
        ([3, 6, 9], 1, 9, "checkpoint-3", [3, 9]),
        ([3, 6, 9], 1, 6, None, [6]),  # 9 is damaged: the run went on from 3
        ([3, 6, 9, 12], 2, 6, "checkpoint-3", [3, 6]),
        ([3, 6, 9], None, 6, None, [3, 6, 9]),
    ],
)
def test_rotation_keeps_what_was_written_and_the_best(there, keep, written, best, left, tmp_path):
    folders(tmp_path, *there)
    checkpoints.rotate(tmp_path, keep, written, best)
    assert (
        list(checkpoints.steps(tmp_path)) == left and not (tmp_path / checkpoints.WRITING).exists()
    )


def test_what_a_killed_writer_left_does_not_get_into_a_checkpoint(stopped, tmp_path, tiny, tally):
    place, want = again(stopped, tmp_path, tiny)
    root = place.run / "checkpoints"
    shutil.rmtree(root / "checkpoint-10")
    for name in ("checkpoint-10", "checkpoint-7"):
        (root / checkpoints.WRITING / name).mkdir(parents=True)
        (root / checkpoints.WRITING / name / "rng_state_1.pth").write_bytes(b"half")
    tally.tried_one("what a killed writer left")
    assert place.go(lambda _: quick_plots()) == 0, place.said()
    assert place.result() == want.result
    assert {p.name for p in (root / "checkpoint-10").iterdir()} == set(FILES) and not (
        root / checkpoints.WRITING
    ).exists()
    tally.all_ended("identical")


def test_metrics_of_a_finished_run(stopped, tmp_path, tiny, tally):
    place, _ = again(stopped, tmp_path, tiny)
    (place.run / "metrics.json").write_text('{"test_accuracy": 0.')
    tally.tried_one("metrics.json: cut")
    assert "metrics.json is damaged" in place.ended_in_one_line(place.go())
    tally.all_ended("one clear error")


# ---- the caches ----


CACHES = [
    ("linear", "features/*.npy"),
    ("partial", "features/*.npy"),
    ("full", "*/pixels.npy"),
    ("full", "*/labels.npy"),
]
CACHES = [
    (*c, how, seed)
    for c in [*CACHES, ("full", "*/meta.json")]
    for how in HARMS
    for seed in range(3)
]


@pytest.mark.parametrize(
    ("method", "pattern", "how", "seed"),
    [pytest.param(*c, marks=[] if i % 20 == 3 else pytest.mark.slow) for i, c in enumerate(CACHES)],
)
def test_a_file_of_a_cache(method, pattern, how, seed, tmp_path, tiny, tally, undisturbed):
    draw, keys = (
        random.Random(f"{method} {pattern} {how} {seed}"),
        {"method": method, "feature_views": 1},
    )
    want = undisturbed("vit", keys)
    place = Place(tmp_path / "at", tiny("vit"), keys)
    shutil.copytree(want.cache, place.cache)
    path = draw.choice(sorted(place.cache.glob(pattern)))
    tally.tried_one(f"cache, {path.name if 'features' not in pattern else 'features'}: {how}")
    before = path.read_bytes()
    harm(path, how, draw)
    assert place.go(lambda _: quick_plots()) == 0, place.said()
    assert place.result() == want.result
    if "features" in pattern:
        assert path.read_bytes() == before  # made anew
    tally.all_ended("identical")


def test_what_killed_processes_left_in_the_cache_is_swept(tmp_path):
    alive, dead = os.getpid(), max(psutil.pids()) + 100_000
    for name, age in (
        (f"a.0-{dead}.tmp", 100),
        (f"b.0-{dead}.tmp", 5),
        (f"c.1-{alive}.tmp", 100),
        (f"d.1-{alive}.tmp", 4000),
    ):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "whole.npy").write_bytes(b"")
    with contextlib.closing(Entry(tmp_path / "new.npy", (2,), np.float32)) as entry:
        entry.write(np.zeros(2, np.float32).data)
        entry.publish()
    left = sorted(p.name.split(".")[0] for p in tmp_path.iterdir())
    assert left == ["b", "c", "new", "whole"]
    assert load_entry(tmp_path / "new.npy", (2,)).tolist() == [0, 0]
