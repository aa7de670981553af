"""From `train` to `evaluate` and `predict`, and failures of a training."""

import json
import shutil

import PIL.Image
import pytest
from transformers import pipeline

from hf_cifar.cli import main


def test_train_evaluate_and_predict(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert main.run(["train", recipe(), "--learning_rate", "3e-3", "--seed=5"]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"test accuracy {metrics['test_accuracy']:.4f}" in out and str(run / "README.md") in out
    assert metrics["recipe"]["learning_rate"] == 0.003 and metrics["seed"] == 5
    assert str(tmp_path) not in metrics["launch_command"]
    assert "--learning_rate 3e-3" in metrics["launch_command"]

    assert main.run(["evaluate", str(run), "--json", "--precision", "fp32"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["test_accuracy"] == metrics["test_accuracy"]
    assert again["test_nll"] == pytest.approx(metrics["test_nll"], abs=1e-5)
    assert main.run(["evaluate", str(run), "--split", "validation", "--precision", "fp32"]) == 0
    assert f"validation accuracy {metrics['validation_accuracy']:.4f}" in capsys.readouterr().out

    pictures = []
    for i, mode in enumerate(("RGB", "L", "P", "RGBA")):
        picture = PIL.Image.effect_mandelbrot((40 + i, 33), (-2, -1, 1, 1), 30)
        picture.convert(mode).save(tmp_path / f"{i}.png")
        pictures.append(str(tmp_path / f"{i}.png"))
    assert main.run(["predict", str(run), *pictures, "--json", "--top", "10"]) == 0
    ours = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    theirs = pipeline("image-classification", model=str(run), top_k=10)(pictures)
    assert [answer["image"] for answer in ours] == pictures
    for answer, expected in zip(ours, theirs, strict=True):
        scores = {label["label"]: label["score"] for label in answer["labels"]}
        assert scores == {e["label"]: pytest.approx(e["score"], abs=1e-4) for e in expected}
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(pictures[0], folder)
    assert main.run(["predict", str(run), str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_diverged_run_is_one_line_and_exit_1(recipe, capfd):
    words = ["--learning_rate", "1e25", "--optim", "sgd", "--max_grad_norm", "0"]
    assert main.run(["train", recipe(), *words, "--num_train_epochs", "4"]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("hf-cifar: ") and "not finite" in line
    assert "lower `learning_rate`" in line
