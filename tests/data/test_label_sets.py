"""Names of sets of labels, and the cuts of pictures that have them."""

import numpy as np
import pytest

from hf_cifar.data.label_sets import join_labels, pool_rare_sets, split_sets
from hf_cifar.errors import UserError


def test_sets_are_taken_apart_as_they_were_joined():
    sets = [["cat", "dog"], [], ["dog"], ["bird", "cat"]]
    names, members = split_sets([join_labels(labels, "") for labels in sets])
    assert names == ["bird", "cat", "dog"]
    assert [[names[i] for i in np.flatnonzero(row)] for row in members] == sets


def test_spaces_order_and_repetition_change_nothing():
    names, members = split_sets(["b | a", "a|b", "|", ""])
    assert names == ["a", "b"]
    assert members.tolist() == [[True, True], [True, True], [False, False], [False, False]]
    assert join_labels(["b", "a", "b"], "") == "a|b"


def test_numbers_are_sorted_as_numbers():
    assert split_sets(["10|9", "1"])[0] == ["1", "9", "10"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a|b"], "holds a `|`"),
        ([None], "a label of the list is NoneType"),
        ([1.5], "is float"),
        ([True], "is bool"),
        ([["a"]], "is list"),
        ([""], "is str"),
    ],
)
def test_what_is_no_label_is_refused(labels, message):
    with pytest.raises(UserError) as error:
        join_labels(labels, "data, row 3")
    assert message in str(error.value) and str(error.value).startswith("data, row 3: ")


def test_only_rare_sets_are_pooled():
    labels = np.repeat(np.arange(5), [20, 3, 10, 9, 30])
    pooled = pool_rare_sets(labels)
    assert len(np.unique(pooled)) == 4
    assert set(pooled[np.isin(labels, [1, 3])]) == {0}
    assert len(set(pooled[labels == 0])) == 1 and pooled.dtype == np.int64
