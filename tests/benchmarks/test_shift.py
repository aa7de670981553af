"""The benchmarks of corruptions and of adaptation run at their smallest size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUICK = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "holds"),
    [("corruptions", {"cost_ms"}), ("shift", {"overhead", "corruptions", "streams"})],
)
def test_quick_run(name: str, holds: set[str], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--json", str(file)],
        capture_output=True,
        text=True,
        env=os.environ | QUICK,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(file.read_text())
    assert holds <= set(result) and {"command", "hardware", "versions", "commit"} <= set(result)
