"""Whether a server can be reached, asked before a library tries again and again in silence."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

log = logging.getLogger(__name__)
SILENCE = 3.0  # seconds after which the user is told what is being tried
LONGEST_WAIT = 10.0  # seconds after which nothing more is expected
PORTS = {"http": 80, "https": 443}


def check_connection(url: str, say: Callable[[str], None] = log.info) -> None:
    """Return once the server of `url`, or the proxy on the way to it, takes a connection.

    After three seconds without an answer `say` is told what is being tried.

    Raises:
        ConnectionError: the connection was refused, or nothing answered within ten seconds. The
            message is one line with the name of the server and the reason.
    """
    host, port = _first_hop(url)
    outcome: queue.Queue[OSError | None] = queue.Queue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=LONGEST_WAIT).close()
        except OSError as error:
            outcome.put(error)
        else:
            outcome.put(None)

    # In a thread of its own, because looking up a name can't be interrupted.
    threading.Thread(target=connect, daemon=True).start()
    try:
        error = outcome.get(timeout=SILENCE)
    except queue.Empty:
        say(f"connecting to {host} ... (no answer after {SILENCE:.0f} s)")
        try:
            error = outcome.get(timeout=LONGEST_WAIT - SILENCE)
        except queue.Empty:
            error = TimeoutError(f"no answer within {LONGEST_WAIT:.0f} s")
    if error is not None:
        reason = error.strerror or str(error)
        raise ConnectionError(f"no connection to {host}, port {port}: {reason}")


def _first_hop(url: str) -> tuple[str, int]:
    """Return host and port of the proxy that the environment names for `url`, or of its server."""
    target = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return target.hostname or "localhost", target.port or PORTS.get(target.scheme, 80)
