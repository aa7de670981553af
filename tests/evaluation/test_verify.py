"""Claims on cards against measurements: how labels are mapped, how claims are read, and the verdict
through a Hub.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.hub_fixtures import LABELS, Client, card, save_model, tiny_model
from helpers.hub_server import HubServer
from hypothesis import given
from hypothesis import strategies as st

from hf_cifar.errors import UserError
from hf_cifar.evaluation.card_claim import Claim, card_claim
from hf_cifar.evaluation.label_names import map_labels
from hf_cifar.evaluation.metrics import wilson
from hf_cifar.evaluation.verify import verdict

IDENTITY = list(range(10))


@pytest.mark.parametrize(
    "names",
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
def test_labels_are_mapped_by_name_synonym_or_index(names: list[str]) -> None:
    assert map_labels(names, LABELS, None) == IDENTITY


@given(st.permutations(IDENTITY))
def test_mapping_follows_the_order_of_the_model(order: list[int]) -> None:
    assert map_labels([LABELS[i] for i in order], LABELS, None) == order
    assert map_labels([f"LABEL_{i}" for i in order], LABELS, None) == order


def test_two_words_and_other_data() -> None:
    fine = ["aquarium_fish", "lawn mower", "pickup-truck", "glass", "Butterflies"]
    assert map_labels(
        ["Lawn_Mowers", "GLASSES", "Aquarium Fish", "butterfly", "pickup truck"], fine, None
    ) == [1, 3, 0, 4, 2]


def test_labels_as_told() -> None:
    names = ["n01", "n02", *LABELS[2:]]
    assert map_labels(names, LABELS, {"n01": "airplane", "n02": "car"}) == IDENTITY
    both = ["tabby", "tiger cat", *LABELS]
    told = {"tabby": "cat", "tiger cat": "cat", "cat": "cat"}
    assert map_labels(both, LABELS, told) == [3, 3, *IDENTITY]
    for told, says in (
        ({"nope": "cat"}, "no label 'nope'"),
        ({"n01": "zebra"}, "no label 'zebra'"),
    ):
        with pytest.raises(UserError, match=says):
            map_labels(names, LABELS, told)


def test_the_same_name_comes_before_a_like_one() -> None:
    names = ["A", "a", "C#", "C++", "dog"]
    assert map_labels(["a", "C++", "Dogs", "A", "C#"], names, None) == [1, 3, 4, 0, 2]
    assert map_labels(["x", "y", "C#", "C++", "dog"], names, {"x": "A", "y": "a"}) == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_labels_that_mean_nothing_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        map_labels(["tench", "goldfish", *LABELS[2:]], LABELS, None)
    line = str(caught.value)
    assert "2 labels of the model mean no class of the data: tench, goldfish;" in line
    assert '--labels "theirs=ours,..."' in line and "\n" not in line
    with pytest.raises(UserError, match=r"1000 labels .* and 980 more"):
        map_labels([f"LABEL_{i}" for i in range(1000)], LABELS, None)
    with pytest.raises(UserError, match="'car' and 'automobile' would both mean 'automobile'"):
        map_labels(["car", "automobile", *LABELS[2:]], LABELS, None)
    with pytest.raises(UserError, match="10 labels"):
        map_labels([f"LABEL_{i + 1}" for i in range(10)], LABELS, None)


def front(
    value: str, dataset: str = "type: cifar10", metric: str = "type: accuracy", before: str = ""
) -> str:
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
def test_claims_in_fractions_and_percent(value: str, accuracy: float, rounding: float) -> None:
    claim = card_claim(front(value))
    assert claim is not None
    assert claim.accuracy == pytest.approx(accuracy, abs=1e-12) and claim.rounding == pytest.approx(
        rounding
    )
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
def test_only_the_test_accuracy_on_this_data_is_a_claim(
    dataset: str, metric: str, claims: bool
) -> None:
    assert (card_claim(front("0.9", dataset, metric)) is not None) == claims


def test_the_test_split_comes_first_and_cards_without_claims() -> None:
    other = "  - dataset: {type: cifar10}\n    metrics: [{type: accuracy, value: 0.5}]\n"
    claim = card_claim(front("0.9", "type: cifar10, split: test", before=other))
    assert (
        claim is not None
        and claim.accuracy == 0.9
        and claim.field == "model-index[0].results[1].metrics[1].value"
    )
    for text in (
        "",
        "# net\n0.99 accuracy",
        "---\nlicense: mit\n---\n",
        "---\nmodel-index: [\n---\n",
        front("high"),
    ):
        assert card_claim(text) is None
    assert (
        card_claim("---\nmodel-index: 3\n---\n") is None
        and card_claim("---\nmodel-index: [{results: [1]}]\n---\n") is None
    )
    crlf = card_claim(front("0.9").replace("\n", "\r\n"))
    assert crlf is not None and crlf.accuracy == 0.9


def test_verdict_widens_the_interval_by_the_rounding() -> None:
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


def test_a_claim_on_few_images_has_an_interval_of_its_own() -> None:
    claim = card_claim(front("0.868", "type: cifar10, split: test, args: {samples: 1000}"))
    assert claim is not None and claim.samples == 1000
    assert verdict(claim, wilson(8580, 10_000)) == "confirmed"
    assert verdict(claim, wilson(8000, 10_000)) == "refuted"
    for args in (
        "",
        ", args: full",
        ", args: {samples: 0}",
        ", args: {samples: many}",
        ", args: {samples: -5}",
    ):
        claim = card_claim(front("0.868", f"type: cifar10{args}"))
        assert claim is not None and claim.samples is None
        assert verdict(claim, wilson(8580, 10_000)) == "refuted"


@given(st.integers(1, 10_000), st.data())
def test_a_claim_of_what_was_measured_is_confirmed(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    digits = data.draw(st.integers(0, 4))
    percent = f"{100 * correct / n:.{digits}f}"
    claim = card_claim(front(f'"{percent} %"'))
    assert claim is not None and verdict(claim, wilson(correct, n)) == "confirmed"


def test_honest_and_lying_cards_through_the_hub(
    hub: HubServer, client: Client, tmp_path: Path
) -> None:
    labels = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    save_model(tiny_model(seed=3, labels=[labels[i] for i in order]), tmp_path / "net")
    model = {p.name: p.read_bytes() for p in (tmp_path / "net").iterdir()}
    hub.put("bob/honest", {**model, "README.md": card(0.95, "bob/base").encode()})
    hub.put("bob/lying", {**model, "README.md": card(99.12, "bob/base").encode()})
    hub.put("bob/silent", {**model, "README.md": b"More information needed\n"})
    odd = json.loads(model["config.json"])
    odd["id2label"]["0"] = "teapot"
    hub.put("bob/odd", {**model, "config.json": json.dumps(odd).encode()})
    code = """
import numpy, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from hf_cifar.verify import verify
torch.set_num_threads(1)
names, order = json.loads(sys.argv[1]), json.loads(sys.argv[2])
images = list(numpy.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=numpy.uint8))
def predict(folder):
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")).logits.argmax(-1).numpy()
truth = numpy.array(order)[predict(sys.argv[3])]   # labels of the data: 190 of 200 as the model has them
truth[:10] = (truth[:10] + 1) % 10
def evaluate(folder, data):
    assert data == "the test set"
    return predict(folder), truth
def one(name, **more):
    said = []
    try:
        v = verify(name, dataset="uoft-cs/cifar10", data="the test set", data_labels=names, evaluate=evaluate,
                   out=Path("report") / name.replace("/", "-"), say=said.append, **more)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return {"verdict": v.verdict, "correct": v.correct, "commit": v.commit, "interval": v.interval, "said": said}
answer({"honest": one("bob/honest"), "lying": one("bob/lying"), "silent": one("bob/silent"), "odd": one("bob/odd"),
        "told": one("bob/odd", labels={"teapot": names[order[0]]}), "folder": one(sys.argv[3])})
"""
    told = client(code, json.dumps(LABELS), json.dumps(order), tmp_path / "net", user=None)
    assert {k: v["verdict"] for k, v in told.items() if k != "odd"} == {
        "honest": "confirmed",
        "lying": "refuted",
        "silent": "no claim",
        "told": "no claim",
        "folder": "no claim",
    }
    assert {v["correct"] for k, v in told.items() if k != "odd"} == {190}
    assert told["lying"]["interval"] == pytest.approx(wilson(190, 200))
    head = hub.repo("bob/lying").at("main")
    assert head is not None and told["lying"]["commit"] == head.oid
    assert (
        "99.12 %" in told["lying"]["said"][1]
        and "95.00 % of 200 images" in told["lying"]["said"][1]
    )
    assert told["odd"][0] == "UserError" and "teapot" in told["odd"][1]

    report = tmp_path / "report" / "bob-lying"
    facts = json.loads((report / "verify.json").read_text())
    assert (
        facts["verdict"] == "refuted"
        and facts["claim"]["text"] == "99.12"
        and facts["correct"] == 190
    )
    text = (report / "verify.md").read_text()
    assert "Verdict: refuted" in text and "| plane | airplane |" in text
    assert {s.status for s in hub.seen("storage")} == {200}, "weights came from the Hub"
