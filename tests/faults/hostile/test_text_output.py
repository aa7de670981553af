"""What the command writes, on terminals and pipes of every kind, whatever names are in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.command import ROOT, hf_cifar, start_hf_cifar
from helpers.runs import write_recipe
from helpers.tiny_models import edit_config
from PIL import Image

from hf_cifar.cli import main
from hf_cifar.text import UNSAFE, visible

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LABELS = [
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202eexe.gpj", "a\nb", "\x9b2J"),
    *("😀", "猫", "قطة", "plain", "a\rb"),
]


@pytest.fixture(scope="module")
def model(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose labels would act on a terminal."""
    folder = shutil.copytree(tiny("vit"), tmp_path_factory.mktemp("hostile") / "model")
    edit_config(
        folder, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)}
    )
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 30).convert("RGB").save(path)
    return path


def test_what_is_made_visible() -> None:
    assert visible("a\x1b[31m\tb\nc\u202e\u2028\udce9\x9b") == (
        "a\\x1b[31m\tb\\nc\\u202e\\u2028\\udce9\\x9b"
    )
    unchanged = "naïve 猫 قطة कुत्ता 👩‍🚒 ‌ \\x1b"
    assert visible(unchanged) == unchanged
    assert visible("x" * 10**7, most=80) == "x" * 80 + "…"
    assert not UNSAFE.search("".join(map(visible, map(chr, range(0x110000)))))


def predictions(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """Run `predict` in this process and return what it writes to standard output."""
    capfd.readouterr()
    assert main.run(["predict", *map(str, words)]) == 0
    return capfd.readouterr().out


def test_labels_and_paths_do_not_reach_the_terminal(
    model: Path, picture: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = picture.with_name("\x1b[2J\u202egpj.png")
    hostile.write_bytes(picture.read_bytes())
    (line,) = predictions(capfd, model, hostile, "--top", 10).removesuffix("\n").split("\n")
    assert not UNSAFE.search(line) and "\\x1b[2J\\u202egpj.png" in line
    assert all(visible(label) in line for label in LABELS)
    text = predictions(capfd, model, hostile, "--top", 10, "--json")
    answer = json.loads(text)
    assert {label["label"] for label in answer["labels"]} == set(LABELS)
    assert answer["image"] == str(hostile) and text.isascii()


def refusal(capfd: pytest.CaptureFixture[str], words: list[str]) -> str:
    """Run a command in this process, which must refuse in one line, and return that line."""
    capfd.readouterr()
    code = main.run(words)
    out, err = capfd.readouterr()
    line = err.removesuffix("\n")
    assert (code, out) == (2, "") and "\n" not in line and line.startswith("hf-cifar: "), words
    return line


@pytest.mark.parametrize(
    "words",
    [
        ["train", "\x1b[31mquickstart"],
        ["train", "quickstart", "--\u202eseed", "1"],
        ["train", "quickstart", "\x1b]0;title\x07"],
        ["train", "quickstart", "--seed", "\x1b[2J"],
        ["train", "quickstart", "--method", "\u202elora"],
        ["evaluate", "m", "--split", "\x1b[31m"],
        ["\x1b[31m"],
        ["predict", "./\x9bmodel", "x.png"],
        ["predict", "m", "x.png", "--top", "\x1b"],
        ["recipes", "show", "\x1b[31m\nquickstart"],
    ],
)
def test_messages_do_not_reach_the_terminal_as_they_are(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert not UNSAFE.search(refusal(capfd, words))


@pytest.mark.parametrize(
    "words",
    [
        ["train", "LONG"],
        ["train", "quickstart", "--LONG"],
        ["train", "quickstart", "LONG"],
        ["train", "quickstart", "--seed", "9" * 100_000],
        ["train", "quickstart", "--dataset_name", "LONG"],
        ["evaluate", "m", "--LONG"],
        ["evaluate", "m", "--split", "LONG"],
        ["predict", "LONG", "x.png"],
        ["push", "LONG", "--to", "a/b"],
        ["push", ".", "--to", "LONG"],
        ["recipes", "copy", "quickstart", "LONG"],
    ],
)
def test_messages_are_cut(
    words: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(refusal(capfd, [word.replace("LONG", "x" * 100_000) for word in words])) < 2500


def test_a_terminal_without_unicode(model: Path, picture: Path) -> None:
    emoji = picture.with_name("😀.png")
    emoji.write_bytes(picture.read_bytes())
    done = hf_cifar("predict", model, emoji, "--top", "10", environment=ASCII)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "plain" in done.stdout and "\\U0001f600" in done.stdout and done.stdout.isascii()
    for environment in (ASCII, {"LANG": "C"}, {"PYTHONIOENCODING": "latin-1"}):
        done = hf_cifar("train", "😀", environment=environment, encoding="latin-1")
        assert done.returncode == 2 and done.stderr.startswith("hf-cifar: "), environment


def test_a_file_name_that_is_no_utf_8(
    model: Path, picture: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(os.fsencode(picture.parent) + b"/caf\xe9.png")
    Path(name).write_bytes(picture.read_bytes())
    assert json.loads(predictions(capfd, model, name, "--json"))["image"] == name
    assert "caf\\udce9.png" in predictions(capfd, model, name)
    done = hf_cifar("train", b"caf\xe9.yaml")
    assert done.returncode == 2 and "caf\\udce9.yaml" in done.stderr


def test_a_reader_that_ends_early(model: Path, picture: Path) -> None:
    process = start_hf_cifar("predict", model, *[picture] * 300, "--json")
    assert process.stdout is not None and process.stderr is not None
    assert json.loads(process.stdout.readline())["image"] == str(picture)
    process.stdout.close()  # as `head -1` does
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 128 + 13  # as a shell reports SIGPIPE


def test_a_reader_that_never_reads() -> None:
    """Also where the text is written by argparse."""
    for words in (["recipes", "list"], ["train", "--help"], ["recipes", "show", "quickstart"]):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as closed:
            done = hf_cifar(*words, stdout=closed)
        assert (done.returncode, done.stderr) == (128 + 13, ""), words


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_standard_output() -> None:
    for words in (["recipes", "list"], ["train", "--help"]):
        with open("/dev/full", "w") as full:
            done = hf_cifar(*words, stdout=full)
        assert done.returncode == 2, words
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("hf-cifar: standard output: No space left on device")
    with open("/dev/full", "w") as full:
        assert hf_cifar("train", "nowhere", stderr=full).returncode == 2


def test_progress_in_a_file_is_lines(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """No bar, no half line and no movement of the cursor, in two runs of one process."""
    recipes = []
    for method in ("full", "linear"):
        keys = {"output_dir": str(tmp_path / method), "method": method, "disable_tqdm": False}
        recipes.append(str(write_recipe(tmp_path / f"{method}.yaml", tiny("vit"), **keys)))
    code = (
        "import sys; from hf_cifar.cli.main import run\n"
        "print([run(['train', recipe]) for recipe in sys.argv[1:]])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", code, *recipes],
        env=environment | {"PYTHONPATH": str(ROOT), "HF_CIFAR_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        timeout=200,
    )
    text = done.stderr.decode()
    assert done.returncode == 0 and done.stdout.decode().endswith("[0, 0]\n"), text
    assert not any(part in text for part in ("\r", "\x1b", "it/s", "%|"))
    lines = text.splitlines()
    assert sum(line.startswith("step ") and " of 10, " in line for line in lines) == 5  # logs
    assert sum("validation accuracy" in line for line in lines) == 2  # epochs
    assert any(line.startswith("features: ") and line.endswith("left") for line in lines)
