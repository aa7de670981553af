"""Requests to the Hub that are repeated where a failure may pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub.errors import HTTPError

from hf_cifar.hub.failures import http_cause, http_status, in_a_few_words

T = TypeVar("T")
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before the second, third, ... attempt
LONGEST_WAIT = 300.0  # seconds; the user decides about a longer Retry-After


@dataclass(frozen=True)
class Retry:
    """Repeats a request, after growing waits, if the network or the server failed.

    say: is told of each wait. waits: seconds before the second, third, ... attempt.
    """

    say: Callable[[str], None]
    waits: Sequence[float] = WAITS

    def __call__(self, action: str, request: Callable[[], T]) -> T:
        """Return what `request` returns. Raises its error where that stays, or would on repeating.

        action: what the request does, such as "reading the repo".
        """
        for wait in self.waits:
            try:
                return request()
            except (HTTPError, OSError, ValueError) as error:
                cause = http_cause(error)
                if cause is None or not _may_pass(cause):
                    raise
                wait = max(wait, _retry_after(cause))
                if wait > LONGEST_WAIT:
                    raise
                self.say(f"{action}: {in_a_few_words(cause)}; again in {wait:.0f} s")
            time.sleep(wait)
        return request()


def _may_pass(error: BaseException) -> bool:
    status = http_status(error)
    return status is None or status in (408, 429) or status >= 500


def _retry_after(error: BaseException) -> float:
    response = getattr(error, "response", None)
    seconds = "" if response is None else response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() else 0.0
