"""The hardware, the versions and the resources that a result depends on."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hf_cifar.distributed import usable_cores
from hf_cifar.host import peak_host_memory

LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "evaluate",
    "timm",
    "huggingface_hub",
    "numpy",
)


def hardware_facts(device: torch.device, processes: int) -> dict[str, Any]:
    """Return device, count, cpu, cores and memory_bytes: names of products, none of the machine."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "count": processes,
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and of each library that shapes the numbers."""
    installed = {"python": platform.python_version()}
    for name in ("hf-cifar", *LIBRARIES):
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from a source tree
            installed[name.replace("-", "_")] = metadata.version(name)
    return installed


def commit() -> str | None:
    """Return the commit of this package's checkout; None if it was installed from a wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changes else "")


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Return the most resident memory of this process so far, and the most allocated memory of the
    device, in bytes.
    """
    device_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "peak_host_memory_bytes": peak_host_memory(),
        "peak_device_memory_bytes": device_bytes,
    }


def energy_joules(device: torch.device) -> float | None:
    """Return the energy that a GPU has used so far, by its own counter; None if it can't be read.

    A CPU's counter (RAPL) is not read, because it counts the whole host and wraps within the hour.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        uuid = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except Exception:  # no driver, no such package, no such counter
        return None
