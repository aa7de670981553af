"""`predict --explain`: a PNG for each picture, and the answers as without it."""

import shutil
import sys

import PIL.Image
import pytest
from helpers.rejecting import reject_everything

from hf_cifar.cli import main
from hf_cifar.evaluation.predict import predict

pytest.importorskip("pytorch_grad_cam")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cat.png"
    PIL.Image.effect_mandelbrot((48, 40), (-2, -1, 1, 1), 30).convert("RGB").save(path)
    return path


def test_a_png_for_each_picture_and_the_same_answers(tiny, picture, tmp_path, capfd):
    other = tmp_path / "more" / "cat.jpg"
    other.parent.mkdir()
    PIL.Image.new("RGB", (32, 32), "teal").save(other)
    words = ["predict", str(tiny("resnet")), str(picture), str(other)]
    assert main.run(words) == 0
    plain = capfd.readouterr().out
    assert main.run([*words, "--explain", str(tmp_path / "maps" / "here")]) == 0
    assert capfd.readouterr().out == plain
    written = {path.name: path for path in (tmp_path / "maps" / "here").iterdir()}
    assert set(written) == {"cat.png", "cat-2.png"}
    sheets = [PIL.Image.open(path).convert("RGB") for path in written.values()]
    assert all(min(sheet.size) > 300 for sheet in sheets)
    assert len({sheet.tobytes() for sheet in sheets}) == 2


def test_many_pictures_are_not_explained(tiny, picture, tmp_path, refused):
    line = refused("predict", tiny("vit"), picture, "--explain", tmp_path, "--out", "a.parquet")
    assert "--explain goes with single pictures" in line


def test_a_folder_that_cant_be_made(tiny, picture, refused):
    assert "name another folder" in refused(
        "predict", tiny("vit"), picture, "--explain", picture / "maps"
    )


def test_without_the_extra(tiny, picture, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "pytorch_grad_cam", None
    )  # as Python has it where it is absent
    line = refused("predict", tiny("vit"), picture, "--explain", tmp_path / "maps")
    assert "pip install 'hf-cifar[demo]'" in line


def test_of_a_stranger_the_best_class_is_explained(tiny, picture, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny("resnet"), folder)
    reject_everything(folder)
    explained = []
    answers = predict(str(folder), [str(picture)], 2, lambda *seen: explained.append(seen))
    ((name, labels),) = answers
    assert labels[0]["label"] == "none of these"
    ((same_name, explanation),) = explained
    assert (same_name, explanation.label) == (name, labels[1]["label"])
