"""An HTTP server on this machine that hands out pictures and counts who asked for what."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

Send = Callable[[BinaryIO], None]


@dataclass
class PictureServer:
    """root: its URL. asked: how often each path was asked for."""

    root: str
    asked: Counter[str] = field(default_factory=Counter)


@contextlib.contextmanager
def serving(content: dict[str, bytes | Send]) -> Iterator[PictureServer]:
    """Serve content by path: bytes, or a function that writes a whole answer, headers included."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked[self.path] += 1
            reply = content.get(self.path)
            if callable(reply):
                with contextlib.suppress(OSError):  # the client gave up
                    reply(self.wfile)
                return
            self.send_response(200 if reply else 404)
            self.end_headers()
            self.wfile.write(reply or b"nothing here")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state = PictureServer(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield state
        finally:
            server.shutdown()
