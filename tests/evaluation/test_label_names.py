"""The labels of a model are matched with those of the data by name."""

import pytest
from helpers.runs import LABELS
from hypothesis import given
from hypothesis import strategies as st

from hf_cifar.errors import UserError
from hf_cifar.evaluation.label_names import map_labels

IDENTITY = list(range(10))


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        [name.upper() for name in LABELS],
        [f" {name.title()}s " for name in LABELS],
        ["plane", "car", "birds", "Cat", "deer", "DOG", "frogs", "horse", "boat", "lorry"],
        ["aeroplane", "auto", "bird", "cats", "deer", "dogs", "toad", "horses", "ships", "trucks"],
        [f"LABEL_{i}" for i in range(10)],
        [f"label {i}" for i in range(10)],
        [str(i) for i in range(10)],
    ],
)
def test_labels_are_mapped_by_name_synonym_or_number(labels):
    assert map_labels(labels, LABELS) == IDENTITY


@given(st.permutations(IDENTITY))
def test_mapping_follows_the_order_of_the_model(order):
    assert map_labels([LABELS[i] for i in order], LABELS) == order
    assert map_labels([f"LABEL_{i}" for i in order], LABELS) == order


def test_names_of_several_words_and_plurals():
    data = ["aquarium_fish", "lawn mower", "pickup-truck", "glass", "Butterflies"]
    model = ["Lawn_Mowers", "GLASSES", "Aquarium Fish", "butterfly", "pickup truck"]
    assert map_labels(model, data) == [1, 3, 0, 4, 2]


def test_given_labels_come_first():
    labels = ["n01", "n02", *LABELS[2:]]
    assert map_labels(labels, LABELS, {"n01": "airplane", "n02": "car"}) == IDENTITY
    three_cats = ["tabby", "tiger cat", *LABELS]
    given = {"tabby": "cat", "tiger cat": "cat", "cat": "cat"}
    assert map_labels(three_cats, LABELS, given) == [3, 3, *IDENTITY]
    for given, message in (
        ({"nope": "cat"}, "no label 'nope'"),
        ({"n01": "zebra"}, "no label 'zebra'"),
    ):
        with pytest.raises(UserError, match=message):
            map_labels(labels, LABELS, given)


def test_the_same_name_comes_before_a_similar_one():
    data = ["A", "a", "C#", "C++", "dog"]
    assert map_labels(["a", "C++", "Dogs", "A", "C#"], data) == [1, 3, 4, 0, 2]
    given = {"x": "A", "y": "a"}
    assert map_labels(["x", "y", "C#", "C++", "dog"], data, given) == [0, 1, 2, 3, 4]


def test_labels_that_match_nothing_are_listed():
    with pytest.raises(UserError) as caught:
        map_labels(["tench", "goldfish", *LABELS[2:]], LABELS)
    message = str(caught.value)
    assert "2 labels of the model mean no class of the data: tench, goldfish;" in message
    assert '--labels "theirs=ours,..."' in message and "\n" not in message
    with pytest.raises(UserError, match=r"1000 labels .* and 980 more"):
        map_labels([f"LABEL_{i}" for i in range(1000)], LABELS)
    with pytest.raises(UserError, match="'car' and 'automobile' would both mean 'automobile'"):
        map_labels(["car", "automobile", *LABELS[2:]], LABELS)
    with pytest.raises(UserError, match="10 labels"):
        map_labels([f"LABEL_{i + 1}" for i in range(10)], LABELS)


def test_ten_thousand_labels_take_no_time():
    labels = [f"class {i}" for i in range(10_000)]
    assert map_labels(labels[::-1], labels) == list(range(10_000))[::-1]
