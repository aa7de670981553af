"""Failures of the Hub in words."""

from __future__ import annotations

import json

from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from hf_cifar.errors import HfCifarError, PushError, UserError

LOGIN = "log in with `hf auth login` or set HF_TOKEN"


def http_cause(error: BaseException) -> BaseException | None:
    """Return the HTTP error that caused `error`, if one did; also an answer that is no JSON, which
    is a server's error page.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (HTTPError, json.JSONDecodeError)):
        cause = cause.__cause__ or cause.__context__
    return cause


def http_status(error: BaseException | None) -> int | None:
    """Return the status of the answer that an error came with, if there was an answer."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def in_a_few_words(error: BaseException) -> str:
    """Return what an HTTP error says, such as "the Hub answered 503"."""
    status = http_status(error)
    if status is None:
        return f"no answer ({type(error).__name__})"
    message = _one_line(getattr(error, "server_message", None) or "")
    return f"the Hub answered {status}" + (f" ({message})" if message else "")


def explained(error: Exception, repo: str, command: str) -> HfCifarError:
    """Return the error that tells the user why a push to `repo` failed and what to do.

    A UserError where the input was wrong, else a PushError. command: repeats the push.
    """
    cause = http_cause(error)
    status = http_status(cause)
    if status == 401:
        return UserError(
            f"the Hub does not accept this token (401): {LOGIN} with a token that may write"
        )
    if status == 403:
        return UserError(
            f"no right to push to {repo} (403): choose a namespace of yours, or a token that may"
            " write there"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return UserError("HF_HUB_OFFLINE is set, but a push needs the Hub: unset it and push again")
    if isinstance(error, ValueError) and "README.md" in str(error):
        return UserError(f"README.md: the Hub refuses its metadata: {_one_line(str(error))}")
    repeat = f"the run is whole; repeat with: {command}"
    if cause is None and "xet" in f"{type(error).__module__} {error}".lower():
        return PushError(
            f"the upload through xet failed; {repeat} (HF_HUB_DISABLE_XET=1 uploads without xet)"
        )
    reason = f"{type(error).__name__}: {_one_line(str(error))}"
    if cause is not None:
        reason = in_a_few_words(cause)
    elif isinstance(error, ConnectionError):
        reason = str(error)
    return PushError(f"the push to {repo} failed: {reason}; {repeat}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
