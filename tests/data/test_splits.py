"""Cuts of splits, as properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cifar.data.splits import VALIDATION_CUT, first_rows, samples_per_class, stratified_cut
from hf_cifar.errors import UserError

label_arrays = st.lists(st.integers(0, 6), min_size=2, max_size=200).map(
    lambda labels: np.unique(np.array(labels), return_inverse=True)[1].astype(np.int64)
)


@settings(max_examples=200, deadline=None)
@given(labels=label_arrays, fraction=st.floats(0.01, 0.9), seed=st.integers(0, 2**32))
def test_a_cut_is_stratified_and_of_the_size_asked(labels, fraction, seed):
    cut = stratified_cut(labels, fraction, seed, VALIDATION_CUT)
    counts, taken = np.bincount(labels), np.bincount(labels[cut], minlength=labels.max() + 1)
    assert (np.diff(cut) > 0).all() and (cut >= 0).all() and (cut < len(labels)).all()
    least, most = np.minimum(counts - 1, 1), counts - 1
    assert (taken >= least).all() and (taken <= most).all()
    assert len(cut) == np.clip(round(fraction * len(labels)), least.sum(), most.sum())
    if (np.floor(counts * fraction) >= 1).all() and (
        counts * fraction + 1 <= most
    ).all():  # no bound in the way
        assert (np.abs(taken - counts * len(cut) / len(labels)) < 1).all()
    assert np.array_equal(cut, stratified_cut(labels, fraction, seed, VALIDATION_CUT))


@settings(max_examples=200, deadline=None)
@given(labels=label_arrays, most=st.integers(1, 250))
def test_first_rows_keep_every_class_and_the_order(labels, most):
    rows = first_rows(labels, most)
    assert len(rows) == min(most, len(labels)) and (np.diff(rows) > 0).all()
    if most >= len(set(labels)):
        assert set(labels[rows]) == set(labels)
    for label in set(labels):
        mine = np.flatnonzero(labels == label)
        taken = rows[labels[rows] == label]
        assert np.array_equal(taken, mine[: len(taken)])
    assert rows.tolist() == list(range(len(labels))) or most < len(labels)


@settings(max_examples=100, deadline=None)
@given(labels=label_arrays, per_class=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_few_shot_is_balanced_or_refused(labels, per_class, seed):
    counts = np.bincount(labels)
    names = [f"class {i}" for i in range(len(counts))]
    if counts.min() < per_class:
        with pytest.raises(UserError, match=f"class {np.flatnonzero(counts < per_class)[0]} "):
            samples_per_class(labels, per_class, seed, names)
    else:
        assert np.bincount(labels[samples_per_class(labels, per_class, seed, names)]).tolist() == [
            per_class
        ] * len(counts)
