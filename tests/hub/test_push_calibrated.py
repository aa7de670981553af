"""A run that says "none of these" says so on the Hub, too."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hub_checks import pushed
from helpers.hub_fixtures import Client
from helpers.hub_server import HubServer
from helpers.runs import train_into, without_drawing
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.evaluation.known_pictures import read_known
from hf_cifar.evaluation.predict import predict
from hf_cifar.hub.run_files import files_to_push, finished_metrics

FILE = "known_pictures.safetensors"


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A tiny run that rejects nearly every picture."""
    folder = tmp_path_factory.mktemp("calibrated") / "net"
    keys = {"method": "linear", "max_train_samples": 150, "validation_fraction": 0.2}
    run = train_into(folder, tiny("resnet"), max_eval_samples=20, **keys).path
    with without_drawing():
        assert main.run(["calibrate", str(run), "--reject", "1"]) == 0
    return run


@pytest.fixture
def calibrated(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "net"))


def test_a_pushed_and_downloaded_model_says_none_of_these(
    hub: HubServer, client: Client, calibrated: Path
) -> None:
    result = client.push(calibrated)
    assert result["kind"] == "PushResult", result
    assert FILE in pushed(hub) and any(FILE in line for line in result["lines"])
    Image.new("RGB", (32, 32), "white").save(client.folder / "white.png")
    asked = subprocess.run(
        [sys.executable, "-m", "hf_cifar", "predict", "alice/net", "white.png", "--json"],
        env=client.environment(user=None, home="other"),
        cwd=client.folder,
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stderr
    answers = json.loads(asked.stdout)["labels"]
    assert answers[0]["label"] == "none of these"
    assert [answers] == [a for _, a in predict(str(calibrated), [f"{client.folder}/white.png"], 3)]


def test_the_file_goes_with_the_config_that_names_it(calibrated, caplog) -> None:
    metrics = finished_metrics(calibrated)
    assert FILE in files_to_push(calibrated, metrics, "alice/net")
    config = json.loads((calibrated / "config.json").read_text())
    (calibrated / FILE).rename(calibrated.parent / FILE)
    with pytest.raises(UserError, match=f"lacks {FILE}"):
        finished_metrics(calibrated)
    assert read_known(load_classifier(str(calibrated))) is None
    assert any(f"{FILE} is missing" in line for line in caplog.messages)
    (calibrated.parent / FILE).rename(calibrated / FILE)
    del config["reject"]
    (calibrated / "config.json").write_text(json.dumps(config))
    assert FILE not in files_to_push(calibrated, finished_metrics(calibrated), "alice/net")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda tensors: tensors | {"validation": tensors["validation"][:, :3]}, "another model"),
        (lambda tensors: tensors | {"reference_labels": tensors["reference_labels"] + 9}, "labels"),
        (lambda tensors: tensors | {"references": tensors["references"] * float("nan")}, "finite"),
        (lambda tensors: {"references": tensors["references"]}, "damaged"),
    ],
)
def test_somebody_elses_file_is_checked(calibrated, change, part, tmp_path, capfd) -> None:
    tensors = load_file(calibrated / FILE)
    changed = {name: tensor.contiguous() for name, tensor in change(tensors).items()}
    save_file(changed, calibrated / FILE)
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    assert main.run(["predict", str(calibrated), str(tmp_path / "white.png")]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert FILE in line and part in line and "hf-cifar calibrate" in line


@pytest.mark.parametrize(
    "reject", [{"score": "luck"}, {"threshold": float("inf")}, {"threshold": "x"}, {"more": 1}]
)
def test_somebody_elses_threshold_is_checked(calibrated, reject, tmp_path, capfd) -> None:
    from safetensors import safe_open

    with safe_open(calibrated / FILE, "pt") as file:
        facts = json.loads(file.metadata()["reject"]) | reject
    save_file(load_file(calibrated / FILE), calibrated / FILE, {"reject": json.dumps(facts)})
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    assert main.run(["predict", str(calibrated), str(tmp_path / "white.png")]) == 2
    assert FILE in capfd.readouterr().err
