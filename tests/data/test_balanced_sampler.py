"""A sampler that draws each class equally often, as a function of seed and epoch alone."""

import numpy as np
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from hf_cifar.data.batches import AGAIN, BalancedSampler, TicketSampler

label_arrays = st.lists(st.integers(0, 4), min_size=1, max_size=120).map(np.array)


@settings(max_examples=80, deadline=None)
@given(label_arrays, st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(1, 16))
def test_classes_and_their_images_are_drawn_equally_often(labels, seed, epoch, update):
    n, classes = len(labels), len(np.unique(labels))

    def drawn(epoch):
        return np.array(list(BalancedSampler(labels, seed, lambda: epoch, update)))

    tickets = drawn(epoch)
    assert len(tickets) == len(list(TicketSampler(n, seed, lambda: epoch, update)))
    assert np.array_equal(tickets, drawn(epoch))
    turns, index = np.divmod(tickets, n)
    assert (turns % AGAIN == epoch).all()  # of the schedules by epoch
    assert len(set(tickets)) == len(tickets)  # no view of an image comes twice
    counts = np.unique(labels[index], return_counts=True)[1]
    assert counts.max() - counts.min() <= 1 or len(counts) < classes
    for label in np.unique(labels):
        times = np.bincount(index, minlength=n)[labels == label]
        assert times.max() - times.min() <= 2  # it begins and ends within a permutation


def test_every_image_of_a_large_class_is_seen_over_the_epochs():
    labels = np.repeat([0, 1], [90, 10])
    seen = np.zeros(100, int)
    for epoch in range(9):  # 450 of each class
        tickets = np.array(list(BalancedSampler(labels, 3, lambda epoch=epoch: epoch)))
        np.add.at(seen, tickets % 100, 1)
    assert (seen[:90] == 5).all() and (seen[90:] == 45).all()
    other = [list(BalancedSampler(labels, seed, lambda: 0)) for seed in (3, 4)]
    assert other[0] != other[1]


def test_two_processes_share_the_tickets_of_one():
    labels = np.repeat([0, 1, 2], [50, 9, 5])
    batches = BatchSampler(BalancedSampler(labels, 0, lambda: 2, 16), 8, drop_last=False)
    parts = [list(BatchSamplerShard(batches, 2, process)) for process in (0, 1)]
    shared = [ticket for pair in zip(*parts, strict=True) for part in pair for ticket in part]
    assert shared == list(BalancedSampler(labels, 0, lambda: 2, 16)) and len(shared) == 64
