"""What a classifier asks of its classes."""

import numpy as np
import pytest
from helpers.pictures import class_folders, loaded

from hf_cifar.data.image_store import ImageTable
from hf_cifar.data.load import check_classes
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


def split(names, labels, name="train"):
    labels = np.array(labels, dtype=np.int64)
    table = ImageTable(np.zeros((len(labels), 3, 2, 2), np.uint8), labels, names, "", [])
    return Split(name, table, np.arange(len(labels)), labels)


def test_classes_that_differ_by_case_only_are_named(tmp_path):
    data = loaded(class_folders(tmp_path / "data", classes=("Cat", "cat", "dog", "DOG", "ship")))
    assert len(data.label_names) == 5
    messages = check_classes("data", [data.train])
    assert len(messages) == 2
    assert "the classes Cat and cat differ by case only; if they mean the same" in messages[0]
    assert check_classes("data", [split(["cat", "dog"], [0, 1])]) == []


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["cat"], [0, 0], r"has only one class \(cat\)"),
        (["cat", "dog", "cat"], [0, 1, 2], "more than one class is called cat"),
        (["cat", "dog"], [0, 0], r"split train: no image of class dog \(1 of 2 classes\)"),
    ],
)
def test_classes_that_nothing_can_be_learned_from(names, labels, message):
    with pytest.raises(UserError, match=message):
        check_classes("data", [split(names, labels)])


def test_a_cut_of_a_split_may_lack_a_class():
    whole = split(["cat", "dog"], [0, 0, 0, 1])
    few = Split("validation", whole.images, whole.rows[:2], whole.labels[:2])
    assert check_classes("data", [whole, few]) == []
