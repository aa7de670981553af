"""Training from cached hidden states is training on images: the same model, from the cache or not,
on a disk that is full or not.
"""

import resource
import shutil

import pytest
from helpers import tiny_models
from helpers.forked import ForkedRun
from helpers.runs import (
    CHECKPOINT_EVERY_3,
    assert_same_run,
    assert_same_weights,
    largest_difference,
    saved_weights,
)
from helpers.waits import WaitsOfSteps
from helpers.watching import images_seen, stopped_in_step, trainer_callbacks
from safetensors.torch import load_file

SLOW = pytest.mark.slow
PARTIAL = {"method": "partial", "random_resized_crop_scale": None, "horizontal_flip": 0.0}
LIMIT = 150_000
SETS = 40 + 20 + 20  # images of training, validation and test
PROBES = 1 + 2 + 3 * 4  # images that count FLOPs and find what stands in for the lower blocks


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def train_partial(train):
    """As `train`, for a partial run without augmentation."""
    return lambda name, model, **keys: train(name, model, **PARTIAL | keys)


@pytest.fixture
def full_disk(monkeypatch):
    """Leave 1000 bytes free, as far as `shutil` can tell."""

    def fill():
        usage = shutil.disk_usage("/")._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return fill


@pytest.fixture
def backbone(tiny, tmp_path):
    """As `tiny`, without the stochastic depth of Swin's own config."""

    def folder(family):
        copy = shutil.copytree(tiny(family), tmp_path / f"tiny-{family}")
        if family == "swin":
            tiny_models.edit_config(copy, drop_path_rate=0.0)
        return copy

    return folder


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        pytest.param("vit", {}, marks=SLOW),
        ("resnet", {"channels_last": True}),
        (
            "swin",
            {"feature_views": 2, "random_resized_crop_scale": [0.5, 1.0], "horizontal_flip": 0.5},
        ),
        pytest.param(
            "vit",
            {"bf16": True, "feature_views": 1, "random_resized_crop_scale": [0.5, 1.0]},
            marks=SLOW,
        ),
    ],
)
def test_training_from_cached_hidden_states_is_training(
    family, keys, backbone, train_partial, full_disk
):
    """A first run fills the cache and a second one reads it; a third one can't cache.

    CPU kernels may round a row of a batch of eight and of twenty differently, so all take batches
    of one size.
    """
    keys = keys | {"per_device_eval_batch_size": 8, "optim": "sgd", "learning_rate": 0.05}
    folder = backbone(family)
    views = keys.get("feature_views", 1)
    clean_train = 0 if "feature_views" in keys and views == 1 else 40 // 10 + 1  # scored apart
    with images_seen() as seen:
        first = train_partial("first", folder, **keys)
    assert sum(seen) - PROBES - SETS == clean_train + (views - 1) * 40
    with images_seen() as seen:
        second = train_partial("second", folder, **keys)
    assert sum(seen) == PROBES
    assert_same_run(first, second)
    shutil.rmtree(folder.parent / "cache" / "features")
    full_disk()
    with images_seen() as seen:
        plain = train_partial("plain", folder, **keys)
    assert sum(count for count in seen if count > 3) > 2 * 40  # in every epoch
    assert largest_difference(saved_weights(plain), saved_weights(first)) < 1e-6
    assert first.metrics["test_nll"] == pytest.approx(plain.metrics["test_nll"], abs=1e-6)
    assert "features_runtime" in first.metrics and "features_runtime" not in plain.metrics
    start, trained = tiny_models.build(family).state_dict(), saved_weights(first)
    body = [name for name in start if name in trained and "classifier" not in name]
    assert any((trained[name] - start[name]).abs().max() > 0 for name in body)


def test_images_that_are_augmented_anew_are_not_cached(tiny, train_partial, tmp_path, caplog):
    with images_seen() as seen, caplog.at_level("INFO", "hf_cifar"):
        train_partial("run", tiny("vit"), random_resized_crop_scale=[0.5, 1.0])
    assert "training images are augmented anew at every epoch" in caplog.text
    assert not (tmp_path / "cache" / "features").exists()
    assert max(seen) == 20 and seen.count(8) == 10


def test_a_stopped_run_resumes_from_hidden_states(tiny, train_partial):
    whole = train_partial("whole", tiny("deit"), **CHECKPOINT_EVERY_3)
    with stopped_in_step(8):
        train_partial("stopped", tiny("deit"), **CHECKPOINT_EVERY_3)
    assert_same_run(whole, train_partial("stopped", tiny("deit"), **CHECKPOINT_EVERY_3))


def test_hidden_states_larger_than_half_of_the_free_disk_are_not_cached(
    tiny, train_partial, tmp_path, full_disk, caplog
):
    full_disk()
    with caplog.at_level("INFO", "hf_cifar"):
        train_partial("run", tiny("vit"), max_steps=1)
    assert "more than half of the free disk" in caplog.text
    assert not list((tmp_path / "cache" / "features").iterdir())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            PARTIAL | {"max_train_samples": 120, "feature_views": 1},
            "hidden states can't be written",
        ),
        ({"method": "linear", "max_train_samples": 300, "feature_views": 4}, "not cached: "),
    ],
)
def test_a_cache_that_takes_no_large_files_is_done_without(keys, message, tiny, tmp_path):
    """The process may write no file over LIMIT bytes, which all files fit but the new cache's."""
    keys = keys | {"max_steps": 2, "save_strategy": "no"}
    free = ForkedRun(tmp_path / "free", tiny("vit"), keys)
    assert free.run_to_end() == 0, free.output()
    assert max(path.stat().st_size for path in free.cache.glob("features/*.npy")) > LIMIT
    limited = ForkedRun(tmp_path / "limited", tiny("vit"), keys, images=free.cache)

    def limit(_: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

    assert limited.run_to_end(limit) == 0, limited.output()
    assert message in limited.output()
    left = [path.stat().st_size for path in limited.cache.glob("features/*")]
    assert not list(limited.cache.glob("features/*.tmp")) and max(left, default=0) < LIMIT
    weights = [load_file(run.folder / "model.safetensors") for run in (free, limited)]
    assert largest_difference(*weights) < 1e-6


def test_a_damaged_entry_is_computed_again(tiny, train_partial, tmp_path, caplog):
    first = train_partial("first", tiny("vit"), max_steps=2)
    for path in (tmp_path / "cache" / "features").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-10])
    with caplog.at_level("INFO", "hf_cifar"):
        second = train_partial("second", tiny("vit"), max_steps=2)
    assert "is damaged and is computed again" in caplog.text
    assert_same_weights(first, second)


@pytest.mark.parametrize("keys", [pytest.param({}, marks=SLOW), {"feature_views": 2}])
def test_no_step_on_hidden_states_waits_for_the_device(keys, tiny, train_partial):
    watcher = WaitsOfSteps()
    quiet = {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 100, "max_steps": 5}
    with trainer_callbacks(watcher):
        train_partial("run", tiny("vit"), **keys, **quiet)
    assert watcher.steps == [1, 2, 3, 4, 5] and watcher.seen == []
