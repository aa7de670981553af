"""Class folders."""

import numpy as np
import pytest
from helpers.data_sets import class_counts, class_folder, load_for_a_classifier, recipe

from hf_cifar.data.load import load_data, load_split
from hf_cifar.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    """One cache for the file, so that the sample is decoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_CIFAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_class_folders_with_splits(tmp_path):
    class_folder(
        tmp_path, {"train/b": 5, "train/a": 6, "val/a": 2, "val/b": 2, "test/a": 1, "test/b": 3}
    )
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "a" / "meta.json").write_text("{}")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("no image")
    class_folder(tmp_path, {"train/a/deeper": 1, "train/.cache": 1})
    found = load_data(recipe(tmp_path, validation_fraction=0.5))
    assert (
        found.label_names == ["a", "b"] and found.source == tmp_path.name and found.license is None
    )
    assert [class_counts(s) for s in (found.train, found.validation, found.test)] == [
        [7, 5],
        [2, 2],
        [1, 3],
    ]


def test_class_folders_without_splits_are_cut_by_the_seed(tmp_path):
    class_folder(tmp_path, {"a": 40, "b": 60})
    found = load_data(recipe(tmp_path, validation_fraction=0.1, test_fraction=0.2))
    assert [class_counts(s) for s in (found.train, found.validation, found.test)] == [
        [29, 43],
        [3, 5],
        [8, 12],
    ]
    rows = np.concatenate([found.train.rows, found.validation.rows, found.test.rows])
    assert sorted(rows) == list(range(100))
    assert np.array_equal(
        load_split(recipe(tmp_path, validation_fraction=0.1), "test").rows, found.test.rows
    )
    assert load_data(recipe(tmp_path, test_fraction=0.0)).test is None


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "holds no pictures in class folders"),
        ({"a": 0, "b": 0}, "holds no pictures in class folders"),
        ({"a": 3}, r"only one class \(a\)"),
        ({"a": 3, "b": 0}, "split train: no image of class b"),
        ({"train/a": 3, "train/b": 3, "test/a": 2}, "split test: no image of class b"),
        (
            {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2, "test/c": 1},
            "split train: no image of class c",
        ),
        ({"test/a": 3, "test/b": 3}, "no train split, only test"),
        (
            {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "dev/a": 1},
            "folders dev and val both name",
        ),
    ],
)
def test_class_folders_with_something_wrong(tmp_path, counts, message):
    class_folder(tmp_path, counts)
    with pytest.raises(UserError, match=message) as error:
        load_for_a_classifier(recipe(tmp_path))
    assert "\n" not in str(error.value)
