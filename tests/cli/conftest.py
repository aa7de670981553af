"""Recipe files for tiny runs, and the one line that the command refuses bad input with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import write_recipe

from hf_cifar.cli import main


@pytest.fixture
def recipe(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., str]:
    """`recipe(key=value, ...)`: the path of a recipe file for the tiny ViT, whose run goes to
    `tmp_path / "run"`.
    """

    def write(**keys: Any) -> str:
        keys = {
            "model_name_or_path": str(tiny("vit")),
            "output_dir": str(tmp_path / "run"),
            "max_train_samples": 20,
            "num_train_epochs": 1,
        } | keys
        return str(write_recipe(tmp_path / "mine.yaml", tiny("vit"), **keys))

    return write


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(word, ...)`: run the command, which must refuse with exit code 2 and end with one
    line on stderr, and return that line.
    """

    def run(*words: Any) -> str:
        capfd.readouterr()
        code = main.run([str(word) for word in words])
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("hf-cifar: ")]
        assert code == 2 and len(lines) == 1 and err.splitlines()[-1] == lines[0], err
        assert "Traceback" not in err and out == ""
        assert len(lines[0]) < 500
        return lines[0]

    return run
