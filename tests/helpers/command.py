"""The command `hf-cifar` in a process of its own, as people start it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def hf_cifar(
    *words: Any, environment: dict[str, str] | None = None, timeout: float = 120, **options: Any
) -> subprocess.CompletedProcess:
    """Run the command to its end; stdout and stderr are text unless `options` of subprocess.run say
    otherwise.

    environment: variables that are added to this process's own.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.run(
        [sys.executable, "-m", "hf_cifar", *map(_path, words)],
        env=_environment(environment),
        timeout=timeout,
        **options,
    )


def start_hf_cifar(
    *words: Any, environment: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen:
    """Start the command; the caller ends it."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    command = [sys.executable, "-m", "hf_cifar", *map(_path, words)]
    return subprocess.Popen(command, env=_environment(environment), **options)


def _path(word: Any) -> str | bytes:
    return word if isinstance(word, bytes) else str(word)


def _environment(more: dict[str, str] | None) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (more or {})
