"""The page of a run over real HTTP: answers, sentences for what is no picture, and closed doors."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("pytorch_grad_cam")

import httpx
import PIL.Image
from gradio_client import Client, handle_file
from helpers.made_up_run import METRICS
from helpers.rejecting import reject_everything
from helpers.tiny_models import edit_config
from transformers import pipeline

from hf_cifar.demo.facts import page_facts
from hf_cifar.demo.local import listen, private_folder
from hf_cifar.demo.page import MOST_BYTES, NoPicture, PictureClassifier, read_picture
from hf_cifar.demo.serve import make_server
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.evaluation.predict import predict

SECRET = "this stands in another file of the machine"


@dataclass(frozen=True)
class Served:
    """A page that is served. folder: of its files. run: its run folder."""

    address: str
    folder: Path
    run: Path

    def get(self, target: str, **headers: str) -> tuple[int, bytes]:
        """Return status and body for a target that is sent as it is, dots included."""
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=30)
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """What the page needs of a finished run."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    shutil.copytree(tiny("resnet"), folder)
    (folder / "metrics.json").write_text(json.dumps(METRICS | {"run_name": "cats & <b>dogs</b>"}))
    (folder / "recipe.yaml").write_text("dataset_name: sample\nmax_eval_samples: 30\n")
    (folder / "secret.txt").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def served(run) -> Iterator[Served]:
    with listen(0) as listening, private_folder() as folder:
        server = make_server(str(run), folder)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", folder, run)
        server.should_exit = True
        thread.join(30)
    assert not folder.exists()


@pytest.fixture(scope="module")
def client(served, tmp_path_factory) -> Client:
    downloads = tmp_path_factory.mktemp("downloads")
    return Client(served.address, verbose=False, download_files=downloads)


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "cat.png"
    PIL.Image.effect_mandelbrot((48, 40), (-2, -1, 1, 1), 30).convert("RGB").save(path)
    return path


def ask(client: Client, path: Path) -> tuple[str, dict[str, float], str | None]:
    message, labels, heat_map = client.predict(handle_file(path), api_name="/classify")
    scores = {entry["label"]: entry["confidence"] for entry in labels.get("confidences") or []}
    return message, scores, heat_map


def test_the_page_answers_as_pipeline_does_with_a_heat_map(client, run, picture):
    message, scores, heat_map = ask(client, picture)
    expected = pipeline("image-classification", model=str(run), top_k=5)(str(picture))
    assert list(scores) == [answer["label"] for answer in expected]
    assert list(scores.values()) == pytest.approx([a["score"] for a in expected], abs=1e-6)
    best = expected[0]["label"].replace("_", r"\_")
    assert message == f"## {best}: {100 * expected[0]['score']:.1f} %"
    assert heat_map is not None
    with PIL.Image.open(heat_map) as shown:
        assert shown.size == (448, 448) and len(set(shown.convert("L").tobytes())) > 10


def test_the_page_shows_the_cards_figures_and_pictures_to_try(served):
    config = json.loads(served.get("/config")[1])
    texts = " ".join(str(part["props"].get("value")) for part in config["components"])
    assert f"{100 * METRICS['test_accuracy']:.2f} %" in texts
    assert "cats &amp; &lt;b&gt;dogs&lt;/b&gt;" in texts and "<b>dogs" not in texts
    assert len(list((served.folder / "examples").glob("*.png"))) == 8
    assert str(served.run) not in json.dumps(config)


def test_what_is_no_picture_gets_a_sentence(client, tmp_path, picture, capfd):
    files: dict[str, tuple[bytes, str]] = {
        "words.txt": (b"no picture", "This file is no picture that can be read."),
        "words.png": (b"no picture", "This file is no picture that can be read."),
        "empty.png": (b"", "This file is empty."),
        "half.png": (picture.read_bytes()[:400], "This picture is damaged: it can't be decoded."),
    }
    for name, (content, sentence) in files.items():
        (tmp_path / name).write_bytes(content)
        assert ask(client, tmp_path / name) == (sentence, {}, None)
    PIL.Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    message, scores, heat_map = ask(client, tmp_path / "huge.png")
    assert "has 100 million pixels" in message and (scores, heat_map) == ({}, None)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_file_that_is_too_long_is_not_taken(served):
    before = set(served.folder.iterdir())
    content = b"\x89PNG" + bytes(MOST_BYTES)
    answer = httpx.post(f"{served.address}/gradio_api/upload", files={"files": ("a.png", content)})
    assert answer.status_code == 413 and "exceeded maximum allowed size" in answer.text
    assert set(served.folder.iterdir()) == before


def test_no_other_file_can_be_had(served):
    secret = str(served.run / "secret.txt")
    up = "/".join([".."] * 12)
    targets = [
        f"/gradio_api/{route}{path}"
        for route in ("file=", "file/", "file=file://", "stream/")
        for path in (
            secret,
            "/etc/passwd",
            f"{served.folder}/{up}{secret}",
            f"{up}{secret}",
            f"%2e%2e/{up}{secret}",
            secret.replace("/", "%2f"),
            "secret.txt",
        )
    ]
    for folder in ("assets", "static", "svelte"):
        targets += [f"/{folder}/{up}{secret}", f"/{folder}/{up.replace('/', '%2f')}{secret}"]
        targets += [f"/{folder}/%2e%2e/%2e%2e{secret}", f"/{folder}//{secret}"]
    for target in targets:
        status, body = served.get(target)
        assert status in (403, 404, 405), (target, status)
        assert SECRET.encode() not in body and b"root:" not in body


@pytest.mark.parametrize("path", ["/etc/passwd", "secret.txt", "http://127.0.0.1:1/a.png"])
def test_no_other_file_can_be_classified(served, client, path):
    """A request may name any path as the one that was uploaded."""
    path = path.replace("secret.txt", str(served.run / "secret.txt"))
    data: Any = {"path": path, "meta": {"_type": "gradio.FileData"}}
    if path.startswith("http"):
        data["url"] = path
    with httpx.Client(base_url=served.address, timeout=60) as http_client:
        joined = http_client.post("/gradio_api/call/classify", json={"data": [data]})
        event = joined.json()["event_id"]
        answer = http_client.get(f"/gradio_api/call/classify/{event}").text
    assert "event: error" in answer and "event: complete" not in answer
    assert SECRET not in answer and "Traceback" not in answer


def test_nothing_is_fetched_for_a_request_and_no_other_page_gets_in(served):
    for route in ("file", "proxy"):
        assert served.get(f"/gradio_api/{route}=http://127.0.0.1:1/a.png")[0] == 404
        assert served.get(f"/gradio_api/{route}=HTTPS://example.org/a.png")[0] in (400, 403, 404)
    assert served.get("/config", Host="attacker.example")[0] == 400
    policy = httpx.get(served.address).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http:" not in policy


def test_a_page_of_a_run_that_rejects_says_none_of_these(tiny, tmp_path, picture):
    folder = tmp_path / "model"
    shutil.copytree(tiny("vit"), folder)
    reject_everything(folder)
    classifier = load_classifier(str(folder))
    facts = page_facts(classifier, METRICS, "vit")
    answers = PictureClassifier(
        classifier.model, classifier.transforms.processor, facts, folder
    ).answer(picture.read_bytes())
    ((_, labels),) = predict(str(folder), [str(picture)], 2)
    assert labels[0]["label"] == "none of these"
    assert answers.strangeness == labels[0]["score"]
    assert max(answers.scores.values()) == pytest.approx(labels[1]["score"], abs=1e-6)


def test_pictures_with_more_than_8_bits(tmp_path):
    deep = tmp_path / "deep.png"
    PIL.Image.new("I;16", (8, 8), 1000).save(deep)
    with pytest.raises(NoPicture, match="more than 8 bits"):
        read_picture(deep.read_bytes())
    assert read_picture(deep.read_bytes(), [0.0, 2000.0]).getpixel((0, 0)) == (128, 128, 128)
    assert read_picture(deep.read_bytes(), "type").getpixel((0, 0)) == (4, 4, 4)


def test_a_model_without_heat_maps_still_has_a_page(tiny, tmp_path, picture):
    folder = tmp_path / "model"
    shutil.copytree(tiny("resnet"), folder)
    edit_config(folder, problem_type="multi_label_classification")
    classifier = load_classifier(str(tiny("resnet")))
    facts = page_facts(classifier, {}, "name") | {"heat_map": None}
    assert facts["title"] == "name" and facts["figures"] == []
    classifier.model.config.problem_type = "multi_label_classification"
    answers = PictureClassifier(
        classifier.model, classifier.transforms.processor, facts, folder
    ).answer(picture.read_bytes())
    assert answers.heat_map is None and answers.strangeness is None
    assert sum(answers.scores.values()) != pytest.approx(1, abs=1e-3)
    assert set(answers.named) == {name for name, score in answers.scores.items() if score >= 0.5}
    assert answers.scores[answers.named[0]] == max(answers.scores.values())
