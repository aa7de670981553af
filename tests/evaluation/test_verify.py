"""Honest and lying cards, measured: from a folder and through a Hub."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.hub_fixtures import card, save_model, tiny_model
from helpers.runs import LABELS
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_cifar.evaluation.metrics import wilson

THEIR_LABELS = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]  # the model's class -> ours
IMAGES, CORRECT = 200, 190
VERIFY = """
import torch
from hf_cifar.errors import UserError
from hf_cifar.evaluation.verify import summary, verify
torch.set_num_threads(1)
dataset, names = sys.argv[1], sys.argv[2:]
def measure(name, labels=None):
    try:
        result = verify(name, dataset, labels, Path("report") / name.replace("/", "-"))
    except UserError as error:
        return str(error)
    return [result.verdict, result.correct, result.commit, result.interval, summary(result)]
answer({name: measure(name) for name in names} | {
    "given": measure("bob/odd", "teapot=cat"), "bad": measure("bob/odd", "teapot")})
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A model whose classes have other names and another order than ours."""
    folder = tmp_path_factory.mktemp("models") / "net"
    save_model(tiny_model(seed=3, labels=[THEIR_LABELS[i] for i in ORDER]), folder)
    return folder


@pytest.fixture(scope="module")
def dataset(net, tmp_path_factory):
    """A folder `cifar10` of pictures, of which the model knows 190 of 200."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (IMAGES, 1, 1, 3))  # the model answers by colour
    noise = random.integers(-40, 40, (IMAGES, 32, 32, 3))
    images = (colours + noise).clip(0, 255).astype(np.uint8)
    model = AutoModelForImageClassification.from_pretrained(net).eval()
    inputs = AutoImageProcessor.from_pretrained(net)(list(images), return_tensors="pt")
    with torch.no_grad():
        labels = np.array(ORDER)[model(**inputs).logits.argmax(-1).numpy()]
    mistaken: set[int] = set()
    for label in range(IMAGES - CORRECT):  # each class once, for an image that gets another answer
        row = next(r for r in range(IMAGES) if r not in mistaken and labels[r] != label)
        mistaken.add(row)
        labels[row] = label
    root = tmp_path_factory.mktemp("data") / "cifar10"
    for number, label in enumerate(LABELS):
        for split in ("train", "test"):
            (root / split / label).mkdir(parents=True)
        PIL.Image.fromarray(images[number]).save(root / "train" / label / "0.png")
    for number, label in enumerate(labels):
        PIL.Image.fromarray(images[number]).save(root / "test" / LABELS[label] / f"{number}.png")
    return root


def test_honest_and_lying_cards_through_the_hub(hub, client, net, dataset, tmp_path):
    files = {path.name: path.read_bytes() for path in net.iterdir()}
    config = json.loads(files["config.json"])
    config["id2label"]["0"] = "teapot"
    hub.put("bob/honest", {**files, "README.md": card(0.95, "bob/base").encode()})
    hub.put("bob/lying", {**files, "README.md": card(99.12, "bob/base").encode()})
    hub.put("bob/silent", {**files, "README.md": b"More information needed\n"})
    hub.put("bob/odd", {**files, "config.json": json.dumps(config).encode()})
    names = ["bob/honest", "bob/lying", "bob/silent", "bob/odd", str(net)]
    results = client(VERIFY, dataset, *names, user=None)
    assert "teapot" in results.pop("bob/odd") and "theirs=ours" in results.pop("bad")
    assert {name: result[0] for name, result in results.items()} == {
        "bob/honest": "confirmed",
        "bob/lying": "refuted",
        "bob/silent": "no claim",
        "given": "no claim",
        str(net): "no claim",
    }
    assert {result[1] for result in results.values()} == {CORRECT}
    _, _, commit, interval, lines = results["bob/lying"]
    assert commit == hub.repo("bob/lying").at("main").oid
    assert tuple(interval) == wilson(CORRECT, IMAGES)
    assert "99.12 %" in lines[1] and "95.00 % of 200 images" in lines[1]

    report = tmp_path / "report" / "bob-lying"
    facts = json.loads((report / "verify.json").read_text())
    assert (facts["verdict"], facts["claim"]["text"], facts["correct"]) == ("refuted", "99.12", 190)
    text = (report / "verify.md").read_text()
    assert "Verdict: refuted" in text and "| plane | airplane |" in text
    assert {s.status for s in hub.seen("storage")} == {200}, "weights came from the Hub"
