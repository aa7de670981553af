"""The packages, the port and the folder of this machine that the page uses.

Gradio is imported after this, because it looks where its files belong as soon as it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hf_cifar.errors import UserError

HOST = "127.0.0.1"


def check_demo_extra(command: str) -> None:
    """Raise UserError, which begins with `command`, unless the extra `demo` is installed."""
    for package in ("gradio", "pytorch_grad_cam"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{command}: needs the package {package}; install it with"
                " `pip install 'hf-cifar[demo]'`"
            )


def listen(port: int) -> socket.socket:
    """Return a socket that listens on a port of the loopback interface; 0 takes a free one.

    Raises UserError for a port that is in use or not allowed.
    """
    try:
        return socket.create_server((HOST, port))
    except OverflowError:
        raise UserError(f"--port {port}: it must be 1 to 65535; name another port") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"--port {port}: {reason}; name another port") from None


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder that holds all files of the page, uploads too, and is removed at the end.

    Gradio keeps files where these settings say, and tells its authors nothing.
    """
    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    before = {name: os.environ.get(name) for name in (*settings, "GRADIO_TEMP_DIR")}
    usual = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="hf-cifar-demo-") as folder:
        os.environ.update(settings, GRADIO_TEMP_DIR=folder)
        tempfile.tempdir = folder  # an upload that breaks off stays there
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = usual
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
