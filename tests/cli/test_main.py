"""The command itself: help without torch, exit codes, messages of one line."""

import json
import signal
import subprocess
import sys
import time

import pytest
from helpers.command import ROOT, hf_cifar, start_hf_cifar

from hf_cifar.cli import main
from hf_cifar.errors import UserError


def test_help_and_recipes_answer_without_torch():
    code = """
import sys
from hf_cifar.cli import main
for words in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["predict", "--help"],
              ["data", "fetch", "--help"], ["recipes", "list"], ["recipes", "show", "quickstart"]):
    try:
        main.run(words)
    except SystemExit as stop:
        assert stop.code == 0
heavy = {"torch", "transformers", "datasets", "matplotlib", "sklearn", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "model_name_or_path" in done.stdout and "lora_target_modules" in done.stdout


def test_the_program_as_a_module():
    done = hf_cifar("--help")
    assert done.returncode == 0 and "train" in done.stdout and done.stderr == ""
    done = hf_cifar("nonsense")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nonsense" in done.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["COMMAND", "`hf-cifar --help`"]),
        (["predict", "m", "x.png", "--top", "0"], ["predict: --top:", "from 1 on, got 0"]),
        (["evaluate", "m", "--split", "dev"], ["evaluate: --split:", "'dev'", "validation"]),
        (["evaluate", "m", "--seed", "1"], ["unrecognized arguments: --seed 1"]),
        (["push", "run"], ["push: ", "required: --to", "`hf-cifar push --help`"]),
        (["recipes", "show"], ["recipes show: ", "required: NAME"]),
        (["plan", "quickstart", "--mfu", "1.5"], ["plan: --mfu:", "at most 1", "1.5"]),
        (["plan", "quickstart", "--gpu-memory", "-3"], ["plan: --gpu-memory:", "above 0", "-3"]),
        (["find-lr", "quickstart", "--end", "inf"], ["find-lr: --end:", "above 0", "inf"]),
    ],
)
def test_words_that_a_command_does_not_take(words, parts, refused):
    line = refused(*words)
    assert all(part in line for part in parts), line


def test_an_option_is_not_abbreviated():
    """`--fre` is no `--fresh`: it would remove what a run folder holds."""
    with pytest.raises(UserError, match=r"--spli"):
        main.parse(["evaluate", "m", "--spli", "test"])
    assert main.parse(["train", "quickstart", "--fre"]).keys == {"fre": "true"}


def test_the_launcher_is_told_why_a_process_fails(tmp_path):
    report = tmp_path / "error.json"
    done = hf_cifar("train", "quikstart", environment={"TORCHELASTIC_ERROR_FILE": str(report)})
    assert done.returncode == 2
    assert json.loads(report.read_text())["message"]["message"] == done.stderr.strip()


def test_only_the_first_process_is_not_named():
    done = hf_cifar("train", "quikstart", environment={"RANK": "3"})
    assert done.returncode == 2 and done.stderr.startswith("hf-cifar: process 3: ")


def test_sigterm_ends_a_command_in_one_line(tiny, tmp_path):
    """`predict` waits for a picture that never comes."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cat.png"
        process = start_hf_cifar("predict", tiny("vit"), url)
        server.settimeout(60)
        connection, _ = server.accept()
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        connection.close()
    assert process.returncode == 128 + signal.SIGTERM
    assert (out, err) == ("", "hf-cifar: stopped by SIGTERM\n")
