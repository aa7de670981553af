"""The hardware, the versions and the resources that a result depends on."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
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
    """device, count, cpu, cores, memory_bytes: the product names, nothing that names the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "count": processes,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
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
    """Version of Python and of each library that shapes the numbers."""
    found = {"python": platform.python_version()}
    for name in ("hf-cifar", *PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from a source tree
            found[name.replace("-", "_")] = metadata.version(name)
    return found


def commit() -> str | None:
    """The commit of this package's checkout; None where it was installed from a wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        out = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if out.returncode:
        return None
    return out.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Highest resident host memory of this process and highest allocated device memory, in bytes."""
    status = Path("/proc/self/status")
    if (
        status.is_file()
    ):  # not ru_maxrss, which on Linux starts with the value of the process that started this one
        host = int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    else:
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if platform.system() == "Darwin" else 1024
        )
    return {
        "peak_host_memory_bytes": host,
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else None,
    }


def energy_joules(device: torch.device) -> float | None:
    """The GPU's counter of energy used so far, through NVML; None where there is none to read. A
    CPU's counter (RAPL) is not
    read: it counts the whole host and wraps within the hour.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(
            uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
        )
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except Exception:  # no driver, no such package, no such counter: all mean "can't be read"
        return None
