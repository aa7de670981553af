"""Starts of the scripts in tests/helpers/children, as one process or as several by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
CHILDREN = Path(__file__).parent / "children"


def launch(
    processes: int, script: str, *words: str, options: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen[str]:
    """Start children/`script`.py with `words`; options: torchrun's own, in place of one node's."""
    command = [sys.executable]
    if processes > 1 or options:
        here = options if "--nnodes" in options else ("--standalone", *options)
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), *here]
    paths = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(CHILDREN / f"{script}.py"), *words],
        env=os.environ | paths | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 500) -> tuple[int, str, str]:
    """Wait for the end; return exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def run(processes: int, script: str, *words: str) -> None:
    """Run a script to its end, and assert that it succeeds."""
    code, _, err = finish(launch(processes, script, *words))
    assert code == 0, err[-5000:]
