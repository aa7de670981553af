"""Push a finished run to the Hub as one commit, and read it back.

huggingface_hub talks to the server. What is added here: only the files that are meant to be pushed
are, nothing private is in them, a failed push leaves the run whole and can be repeated, and what
arrived is what was sent.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HTTPError

from hf_cifar.hub.failures import explained
from hf_cifar.hub.privacy import scan
from hf_cifar.hub.read_back import read_back
from hf_cifar.hub.repo import Repo, check_repo_name
from hf_cifar.hub.retry import WAITS, Retry
from hf_cifar.hub.run_files import files_to_push, finished_metrics, is_optional
from hf_cifar.hub.upload import PushResult, list_files, log_in, update


def push(
    run: Path,
    to: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    check: bool = True,
    onnx: bool = False,
    say: Callable[[str], None] = print,
    waits: Sequence[float] = WAITS,
) -> PushResult:
    """Push a finished run folder to the model repo `to` ("user/name") as one commit.

    The run folder is only read. Repo and branch are created if they are missing.

    private: create a private repo, and push to no public one. revision: the branch, `main` if None.
    dry_run: write nothing. check: download the commit into an empty cache, compare checksums, and
    compare the model's answers to three images. onnx: take the exported graphs along. say: is told
    what happens, in lines. waits: seconds before a failed request is repeated.

    Raises:
        UserError: bad input: an unfinished run, something private in a file, no token or a wrong
            one, no right to `to`.
        PushError: the network or the server failed. The line names the command that repeats the
            push.
    """
    run = Path(run)
    check_repo_name(to)
    metrics = finished_metrics(run)
    command = f"hf-cifar push {shlex.quote(str(run))} --to {to}"
    command += " --private" if private else ""
    command += f" --revision {shlex.quote(revision)}" if revision else ""
    command += "" if check else " --no-check"
    command += " --dry-run" if dry_run else ""
    command += " --onnx" if onnx else ""
    try:
        files = files_to_push(run, metrics, to, onnx)
        scan(run, files, allowed=to.split("/"))
        list_files(files, f"{to}@{revision or 'main'}", say)
        api = log_in(to, dry_run, say, waits)
        repo = Repo(api, to, revision or "main", private, Retry(say, waits))
        result, head = update(
            repo, files, _commit_message(metrics), dry_run, lambda name: is_optional(name, onnx)
        )
        if check and not dry_run:
            assert head is not None
            read_back(repo, head, files, run)
            result.checked = True
        return result
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise explained(error, to, command) from error


def _commit_message(metrics: dict[str, Any]) -> str:
    model = metrics.get("base_model") or "a model trained from scratch"
    method = f" {metrics['method_description']}" if metrics.get("method_description") else ""
    accuracy, data = 100 * metrics["test_accuracy"], metrics.get("dataset", "the data set")
    interval = ""
    if ends := metrics.get("test_accuracy_ci95"):
        interval = f" (95 % interval {100 * ends[0]:.2f} to {100 * ends[1]:.2f})"
    return f"{model}{method}: {accuracy:.2f} % on {data} test{interval}"
