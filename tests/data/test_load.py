"""The sample and its splits, and names that lead nowhere."""

import numpy as np
import pytest
from helpers.data_sets import class_counts, parquet, recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cifar.data.cifar10 import CLASSES
from hf_cifar.data.image_store import ImageTable
from hf_cifar.data.load import load_data, load_split
from hf_cifar.data.sources.find import SAMPLE
from hf_cifar.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    """One cache for the file, so that the sample is decoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_CIFAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_the_sample_is_balanced_and_becomes_three_disjoint_splits():
    found = load_data(recipe("sample"))
    assert [len(found.train), len(found.validation), len(found.test)] == [1960, 40, 1000]
    assert class_counts(found.validation) == [4] * 10 and class_counts(found.test) == [100] * 10
    assert not set(found.train.rows) & set(found.validation.rows)
    assert (
        found.train.images is found.validation.images
        and found.test.images is not found.train.images
    )
    assert found.label_names == CLASSES and found.source == "sample" and found.license == "unknown"
    for split in (found.train, found.validation, found.test):
        assert isinstance(split.images, ImageTable) and split.images.size == (32, 32)
        assert np.array_equal(split.labels, split.images.labels[split.rows])
        assert (
            split.labels.dtype == split.rows.dtype == np.int64 and (np.diff(split.rows) > 0).all()
        )
    assert sum(file.stat().st_size for file in SAMPLE.rglob("*") if file.is_file()) < 7e6


def test_cuts_follow_the_seed_and_only_the_seed():
    first, again, other = (load_data(recipe("sample", seed=seed)) for seed in (0, 0, 1))
    assert (
        np.array_equal(first.validation.rows, again.validation.rows)
        and first.fingerprint == again.fingerprint
    )
    assert (
        not np.array_equal(first.validation.rows, other.validation.rows)
        and first.fingerprint != other.fingerprint
    )
    few = load_data(recipe("sample", train_samples_per_class=5))
    assert np.array_equal(few.validation.rows, first.validation.rows)
    assert class_counts(few.train) == [5] * 10 and set(few.train.rows) <= set(first.train.rows)


def test_sample_limits_take_the_first_of_each_class():
    found = load_data(
        recipe("sample", max_train_samples=105, max_eval_samples=50, validation_fraction=0.0)
    )
    assert found.validation is None
    assert (
        len(found.train) == 105
        and set(class_counts(found.train)) == {10, 11}
        and class_counts(found.test) == [5] * 10
    )
    labels = found.test.images.labels
    expected = sorted(row for label in range(10) for row in np.flatnonzero(labels == label)[:5])
    assert found.test.rows.tolist() == expected


def test_one_split_is_loaded_alone_and_is_the_same():
    whole = load_data(recipe("sample", max_eval_samples=30))
    for name in ("train", "validation", "test"):
        alone = load_split(recipe("sample", max_eval_samples=30), name)
        assert alone.name == name and np.array_equal(alone.rows, getattr(whole, name).rows)
    with pytest.raises(UserError, match="validation_fraction is 0"):
        load_split(recipe("sample", validation_fraction=0), "validation")
    with pytest.raises(UserError, match="choose train, validation or test"):
        load_split(recipe("sample"), "tets")


def test_evaluation_reads_the_test_split_alone(tmp_path):
    parquet(tmp_path / "test-00000-of-00001.parquet", [0, 1, 0, 1], names=["a", "b"])
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"never read")
    assert len(load_split(recipe(tmp_path), "test")) == 4


@settings(max_examples=15, deadline=None)
@given(
    validation=st.floats(0, 0.4),
    few=st.none() | st.integers(1, 50),
    most=st.none() | st.integers(10, 3000),
    seed=st.integers(0, 1000),
)
def test_splits_never_share_a_row(validation, few, most, seed):
    found = load_data(
        recipe(
            "sample",
            validation_fraction=validation,
            train_samples_per_class=few,
            max_train_samples=most,
            seed=seed,
        )
    )
    held = set() if found.validation is None else set(found.validation.rows.tolist())
    assert not held & set(found.train.rows.tolist())
    assert len(held) == (max(round(validation * 2000), 10) if validation else 0)
    if few and (not most or most >= 10 * few):
        assert class_counts(found.train) == [few] * 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("~/no/such/folder", "no such folder"),
        (__file__, "is a file, but no CIFAR archive"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(UserError, match=message):
        load_data(recipe(name))


@pytest.mark.parametrize(
    "keys", [{"validation_fraction": 1.0}, {"validation_fraction": -0.1}, {"test_fraction": 2.0}]
)
def test_fractions_out_of_range(keys):
    with pytest.raises(UserError, match="at least 0 and below 1"):
        load_data(recipe("sample", **keys))


def test_too_few_for_few_shot():
    with pytest.raises(UserError, match=r"train_samples_per_class is 197.*airplane \(196\)"):
        load_data(recipe("sample", train_samples_per_class=197))
