"""Results for the Hub in its newer form, `.eval_results/*.yaml`, read back by its own library."""

from __future__ import annotations

import yaml
from helpers.made_up_run import METRICS
from huggingface_hub import parse_eval_result_entries

from hf_cifar.reporting.hub_metadata import eval_results


def notes_of(**changes) -> str:
    text = eval_results(METRICS | changes)
    assert text is not None
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id) == ("uoft-cs/cifar10", "default")
    assert entry.value == METRICS["test_accuracy"]
    assert entry.notes is not None
    return entry.notes


def test_the_result_is_read_back_with_how_much_it_was_measured_on():
    assert notes_of() == "accuracy on the test split: 300 images"
    assert notes_of(test_samples=None) == "accuracy on the test split"
    in_part = "accuracy on a part of the test split: 300 images"
    assert notes_of(dataset="sample") == in_part
    assert notes_of(recipe={"max_eval_samples": 300}) == in_part


def test_data_that_the_hub_does_not_have_gives_no_result():
    assert eval_results(METRICS | {"dataset": "pictures"}) is None
    assert eval_results({"dataset": "uoft-cs/cifar10"}) is None
    assert eval_results({"test_accuracy": 0.5}) is None
