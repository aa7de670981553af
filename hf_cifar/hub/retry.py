"""Requests to the Hub that are tried again, and their failures in words."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from hf_cifar.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before the second, third, ... try
LONGEST_WAIT = 300.0  # seconds; a Retry-After beyond it is for the user to wait out
LOGIN = "log in with `hf auth login` or set HF_TOKEN"


class PushError(Exception):
    """The push failed although the input was right. One line; the run folder is whole and the push
    can be repeated.
    """


def retried(what: str, call: Callable[[], T], say: Callable[[str], None]) -> T:
    """`call()`, again after growing waits where the network or the server failed in passing."""
    for wait in (*WAITS, None):
        try:
            return call()
        except (HTTPError, OSError, ValueError) as error:
            cause = _http_cause(error)
            if wait is None or cause is None or not _passing(cause):
                raise
            pause = max(wait, _retry_after(cause))
            if pause > LONGEST_WAIT:
                raise
            say(f"{what}: {short_cause(cause)}; again in {pause:.0f} s")
        time.sleep(pause)
    raise AssertionError("unreachable")


def _http_cause(error: BaseException) -> BaseException | None:
    """The HTTP error at the bottom of `error`; libraries wrap it, or stumble over an error page
    that is no JSON.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (HTTPError, json.JSONDecodeError)):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _status(error: BaseException | None) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _passing(error: BaseException) -> bool:
    status = _status(error)
    return status is None or status in (408, 429) or status >= 500


def _retry_after(error: BaseException) -> float:
    response = getattr(error, "response", None)
    told = "" if response is None else response.headers.get("Retry-After", "")
    return float(told) if told.isdigit() else 0.0


def short_cause(error: BaseException) -> str:
    status = _status(error)
    if status is None:
        return f"no answer ({type(error).__name__})"
    told = getattr(error, "server_message", None) or ""
    return f"the Hub answered {status}" + (f" ({' '.join(told.split())[:200]})" if told else "")


def explained(error: Exception, to: str, command: str) -> Exception:
    cause = _http_cause(error)
    status = _status(cause)
    if status == 401:
        return UserError(
            f"the Hub does not accept this token (401): {LOGIN} with one that may write"
        )
    if status == 403:
        return UserError(
            f"no right to push to {to} (403): choose a namespace of yours, or a token that may write there"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return UserError("HF_HUB_OFFLINE is set, and a push needs the Hub: unset it and push again")
    if isinstance(error, ValueError) and "README.md" in str(error):
        return UserError(
            f"README.md: the Hub refuses its metadata: {' '.join(str(error).split())[:300]}"
        )
    again = f"the run is whole; repeat with: {command}"
    if cause is None and "xet" in f"{type(error).__module__} {error}".lower():
        return PushError(
            f"the upload through xet failed; {again} (HF_HUB_DISABLE_XET=1 uploads without xet)"
        )
    told = (
        short_cause(cause)
        if cause is not None
        else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    )
    return PushError(f"the push to {to} failed: {told}; {again}")
