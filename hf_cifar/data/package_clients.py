"""Downloads through the package managers of this machine: pip, uv, apt-get and npm."""

from __future__ import annotations

import contextlib
import importlib.util
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from hf_cifar.errors import UserError
from hf_cifar.text import visible

MOST_SECONDS = 900
MOST_FILE_BYTES = 2**30  # of one file that a package manager writes


def run_client(command: list[str], folder: Path, remedy: str) -> None:
    """Run a package manager's download in `folder`.

    No file that it writes may be larger than `MOST_FILE_BYTES`. Raises UserError, which ends with
    `remedy`, where there is no such command, or it fails or takes over 15 minutes.
    """
    called = " ".join([Path(command[0]).name, *command[1:]])
    if len(called) > 80:
        called = called[:80] + "..."
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MOST_SECONDS,
            preexec_fn=_limit_files,
        )
    except FileNotFoundError:
        raise UserError(f"there is no {Path(command[0]).name} command here; {remedy}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"`{called}` took over 15 minutes; try again, or {remedy}") from None
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines()]
        errors = [line for line in lines if line.startswith("E:") or "err" in line.lower()]
        why = visible("; ".join(errors[:2]), 200) or f"exit code {result.returncode}"
        raise UserError(f"`{called}` failed ({why}); {remedy}")


def _limit_files() -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower limit is there already
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))


def fetch_python_package(requirement: str, folder: Path, remedy: str) -> None:
    """Unpack a wheel and nothing that it requires into `folder`, through pip, or uv where this
    environment has no pip.

    requirement: name and version, such as "a==1.0". Raises UserError as `run_client`.
    """
    if importlib.util.find_spec("pip") is not None:
        install = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        install = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise UserError(f"there is neither pip nor uv here; {remedy}")
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(folder)]
    run_client([*install, *options, requirement], folder, remedy)


def fetch_debian_package(name: str, folder: Path, remedy: str) -> None:
    """Unpack a Debian package into `folder`, through apt-get and dpkg-deb.

    Nothing is installed. Raises UserError as `run_client`.
    """
    run_client(["apt-get", "download", name], folder, remedy)
    for archive in folder.glob("*.deb"):
        run_client(["dpkg-deb", "-x", archive.name, "."], folder, remedy)
        archive.unlink()
