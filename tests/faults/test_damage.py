"""Files that were cut or altered are found and named, and skipped or made again; the run's bits
stay the same.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from helpers.forked import ForkedRun, kill_this_process
from helpers.watching import AfterPrediction, add_trainer_callbacks

from hf_cifar.training import checkpoints

FILES = (
    "checksums.json",
    "config.json",
    "ema.safetensors",
    "model.safetensors",
    "optimizer.pt",
    "resume_state.json",
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
    """A run that was killed after its last checkpoint, and the same run undisturbed."""
    expected = undisturbed("vit", KEYS)
    root = tmp_path_factory.mktemp("stopped") / "at"
    run = ForkedRun(root, tiny("vit"), KEYS, images=expected.cache)
    killer = AfterPrediction(kill_this_process)
    assert run.run_to_end(lambda _: add_trainer_callbacks(killer)) == -9
    assert list(checkpoints.by_step(run.folder / "checkpoints")) == [3, 6, 9, 10]
    return run, expected


@pytest.fixture
def copy(stopped, tmp_path, tiny):
    """A copy of the stopped run in a folder of its own."""
    original, expected = stopped
    run = ForkedRun(tmp_path / "at", tiny("vit"), KEYS, images=expected.cache)
    shutil.copytree(original.folder, run.folder)
    return run


CHECKPOINT = [(name, how) for name in FILES for how in HARMS]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(*c, marks=[] if i % 9 == 4 else pytest.mark.slow)
        for i, c in enumerate(CHECKPOINT)
    ],
)
def test_a_file_of_the_newest_checkpoint(name, how, stopped, copy, tally):
    newest = copy.folder / "checkpoints" / "checkpoint-10"
    assert {path.name for path in newest.iterdir()} == set(FILES)
    before = (newest / name).read_bytes()
    tally.add(f"checkpoint: {how}")
    harm(newest / name, how, random.Random(f"{name} {how}"))
    assert copy.run_to_end() == 0, copy.output()
    if how != "zeros" or bytes(4096) not in before:  # the harmed part may have been zeros before
        output = copy.output()
        assert "checkpoint-10: " in output and "resuming from checkpoint-9" in output, output
    assert copy.outcome() == stopped[1].outcome
    tally.all_ended("identical")


@pytest.mark.parametrize("how", HARMS)
def test_the_best_checkpoint_that_is_not_the_newest(how, stopped, copy, tally):
    """The run ends with its weights, so it can't resume from a later one that refers to it."""
    expected = stopped[1].outcome
    best = copy.folder / "checkpoints" / f"checkpoint-{expected['metrics']['best_step']}"
    assert best.name != "checkpoint-10"
    tally.add(f"best checkpoint: {how}")
    harm(best / "model.safetensors", how, random.Random(how))
    assert copy.run_to_end() == 0, copy.output()
    assert f"in {best.name}, its best checkpoint; skipped" in copy.output()
    assert copy.outcome() == expected
    tally.all_ended("identical")


def test_the_best_checkpoint_is_gone(stopped, copy, tally):
    best = stopped[1].outcome["metrics"]["best_step"]
    shutil.rmtree(copy.folder / "checkpoints" / f"checkpoint-{best}")
    tally.add("best checkpoint: removed whole")
    assert "the best checkpoint: is missing" in copy.one_line_error(copy.run_to_end())
    tally.all_ended("one clear error")


def test_what_a_killed_writer_left_does_not_get_into_a_checkpoint(stopped, copy, tally):
    root = copy.folder / "checkpoints"
    shutil.rmtree(root / "checkpoint-10")
    for name in ("checkpoint-10", "checkpoint-7"):
        (root / checkpoints.WRITING / name).mkdir(parents=True)
        (root / checkpoints.WRITING / name / "rng_state_1.pth").write_bytes(b"half")
    tally.add("what a killed writer left")
    assert copy.run_to_end() == 0, copy.output()
    assert copy.outcome() == stopped[1].outcome
    assert {path.name for path in (root / "checkpoint-10").iterdir()} == set(FILES)
    assert not (root / checkpoints.WRITING).exists()
    tally.all_ended("identical")


def test_metrics_of_a_finished_run(copy, tally):
    (copy.folder / "metrics.json").write_text('{"test_accuracy": 0.')
    tally.add("metrics.json: cut")
    assert "metrics.json is damaged" in copy.one_line_error(copy.run_to_end())
    tally.all_ended("one clear error")


# ---- the caches ----


CACHES = [
    ("linear", "features/*.npy"),
    ("partial", "features/*.npy"),
    ("full", "*/pixels.npy"),
    ("full", "*/labels.npy"),
    ("full", "*/meta.json"),
]
CACHES = [(*cache, how, seed) for cache in CACHES for how in HARMS for seed in range(3)]


@pytest.mark.parametrize(
    ("method", "pattern", "how", "seed"),
    [pytest.param(*c, marks=[] if i % 20 == 3 else pytest.mark.slow) for i, c in enumerate(CACHES)],
)
def test_a_file_of_a_cache(method, pattern, how, seed, tmp_path, tiny, tally, undisturbed):
    draw = random.Random(f"{method} {pattern} {how} {seed}")
    keys = {"method": method, "feature_views": 1}
    expected = undisturbed("vit", keys)
    run = ForkedRun(tmp_path / "at", tiny("vit"), keys)
    shutil.copytree(expected.cache, run.cache)
    path = draw.choice(sorted(run.cache.glob(pattern)))
    tally.add(f"cache, {path.name if 'features' not in pattern else 'features'}: {how}")
    before = path.read_bytes()
    harm(path, how, draw)
    assert run.run_to_end() == 0, run.output()
    assert run.outcome() == expected.outcome
    if "features" in pattern:
        assert path.read_bytes() == before  # computed again
    tally.all_ended("identical")
