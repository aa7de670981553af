"""What a model card claims, and whether a measurement confirms it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cifar.evaluation.card_claim import Claim, card_claim
from hf_cifar.evaluation.metrics import wilson
from hf_cifar.evaluation.verify import verdict


def make_card(value, dataset="type: cifar10", metric="type: accuracy", before=""):
    return f"""---
model-index:
- name: net
  results:
{before}  - task: {{type: image-classification}}
    dataset: {{{dataset}}}
    metrics:
    - {{type: loss, value: 0.1}}
    - {{{metric}, value: {value}}}
---
# net
"""


@pytest.mark.parametrize(
    ("value", "accuracy", "rounding"),
    [
        ("97.88", 0.9788, 0.00005),
        ("0.9788", 0.9788, 0.00005),
        ("97.80", 0.978, 0.00005),
        ("97.8", 0.978, 0.0005),
        ('"97.88 %"', 0.9788, 0.00005),
        ('"97.88 ± 0.2"', 0.9788, 0.00005),
        ("98", 0.98, 0.005),
        ("0.9788123", 0.9788123, 5e-8),
        ("9.788e-1", 0.9788, 0.00005),
        ("1.0", 1.0, 0.05),
    ],
)
def test_claims_in_fractions_and_percent(value, accuracy, rounding):
    claim = card_claim(make_card(value))
    assert claim.accuracy == pytest.approx(accuracy, abs=1e-12)
    assert claim.rounding == pytest.approx(rounding)
    assert claim.field == "model-index[0].results[0].metrics[1].value"


@pytest.mark.parametrize(
    ("dataset", "metric", "claims"),
    [
        ("type: uoft-cs/cifar10", "type: accuracy", True),
        ("name: CIFAR-10", "type: accuracy", True),
        ("name: cifar_10 test", "name: Test Accuracy, type: other", True),
        ("type: cifar10, split: test", "type: acc", True),
        ('type: cifar10, split: "test[:50%]"', "type: accuracy", True),
        ("type: cifar10, split: train", "type: accuracy", False),
        ("type: cifar10, split: validation", "type: accuracy", False),
        ("type: cifar100", "type: accuracy", False),
        ("name: CIFAR-100", "type: accuracy", False),
        ("type: imagefolder", "type: accuracy", False),
        ("type: cifar10", "type: f1", False),
    ],
)
def test_only_the_test_accuracy_on_this_data_is_a_claim(dataset, metric, claims):
    assert (card_claim(make_card("0.9", dataset, metric)) is not None) == claims


def test_the_test_split_comes_first():
    no_split = "  - dataset: {type: cifar10}\n    metrics: [{type: accuracy, value: 0.5}]\n"
    claim = card_claim(make_card("0.9", "type: cifar10, split: test", before=no_split))
    assert claim.accuracy == 0.9 and claim.field == "model-index[0].results[1].metrics[1].value"


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# net\n0.99 accuracy",
        "---\nlicense: mit\n---\n",
        "---\nmodel-index: [\n---\n",
        "---\nmodel-index: 3\n---\n",
        "---\nmodel-index: [{results: [1]}]\n---\n",
        "---\nmodel-index: []\n",
        make_card("high"),
        make_card("[0.9]"),
    ],
)
def test_cards_without_claims(card):
    assert card_claim(card) is None


def test_lines_may_end_as_on_windows_and_begin_later():
    card = make_card("0.9")
    for text in (card.replace("\n", "\r\n"), "\n\n  " + card, card.replace("---\n", "--- \n")):
        assert card_claim(text).accuracy == 0.9


def test_verdict_widens_the_interval_by_the_rounding():
    interval = (0.9463, 0.9548)
    assert verdict(None, interval) == "no claim"
    for accuracy, rounding, expected in (
        (0.9507, 0.00005, "confirmed"),
        (0.9548, 0.00005, "confirmed"),
        (0.9549, 0.00005, "refuted"),
        (0.9549, 0.0005, "confirmed"),
        (0.9788, 0.00005, "refuted"),
        (0.9462, 0.00005, "refuted"),
        (0.95, 0.0, "confirmed"),
    ):
        assert verdict(Claim(accuracy, rounding, "f", "t"), interval) == expected, accuracy


def test_a_claim_on_few_images_has_an_interval_of_its_own():
    claim = card_claim(make_card("0.868", "type: cifar10, split: test, args: {samples: 1000}"))
    assert claim.samples == 1000
    assert verdict(claim, wilson(8580, 10_000)) == "confirmed"
    assert verdict(claim, wilson(8000, 10_000)) == "refuted"
    for arguments in (
        "",
        ", args: full",
        ", args: {samples: 0}",
        ", args: {samples: many}",
        ", args: {samples: -5}",
    ):
        claim = card_claim(make_card("0.868", f"type: cifar10{arguments}"))
        assert claim.samples is None
        assert verdict(claim, wilson(8580, 10_000)) == "refuted"


@given(st.integers(1, 10_000), st.data())
def test_a_claim_of_what_was_measured_is_confirmed(images, data):
    correct = data.draw(st.integers(0, images))
    percent = f"{100 * correct / images:.{data.draw(st.integers(0, 4))}f}"
    claim = card_claim(make_card(f'"{percent} %"'))
    assert verdict(claim, wilson(correct, images)) == "confirmed"
