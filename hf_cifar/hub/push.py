"""Push a finished run to the Hub as one commit, and read it back.

huggingface_hub talks to the server. What is added here: only the files that are meant to be pushed
are, nothing private is in them, a failed push leaves the run whole and can be repeated, and what
arrived is what was sent.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from hf_cifar.errors import UserError
from hf_cifar.hub.failures import LOGIN, explained
from hf_cifar.hub.privacy import scan
from hf_cifar.hub.read_back import read_back
from hf_cifar.hub.repo import FileHashes, Repo, check_repo_name
from hf_cifar.hub.retry import WAITS, Retry
from hf_cifar.hub.run_files import Files, file_size, files_to_push, finished_metrics, is_optional
from hf_cifar.network import check_connection


@dataclass
class PushResult:
    """The outcome of a push. commit: None where nothing was written, because nothing had changed or
    in a dry run. files: path in the repo -> bytes. checked: whether it was read back.
    """

    repo: str
    revision: str
    files: dict[str, int]
    commit: str | None = None
    url: str | None = None
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    checked: bool = False


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
        _list_files(files, f"{to}@{revision or 'main'}", say)
        api = _log_in(to, dry_run, say, waits)
        repo = Repo(api, to, revision or "main", private, Retry(say, waits))
        result, head = _update(repo, files, _commit_message(metrics), dry_run, onnx)
        if check and not dry_run:
            assert head is not None
            read_back(repo, head, files, run)
            result.checked = True
        return result
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise explained(error, to, command) from error


def _list_files(files: Files, destination: str, say: Callable[[str], None]) -> None:
    sizes = {path: file_size(file) for path, file in files.items()}
    say(f"to {destination}:")
    for path, size in sizes.items():
        say(f"  {_readable_size(size):>9}  {path}")
    say(f"  {_readable_size(sum(sizes.values())):>9}  in {len(files)} files")


def _log_in(to: str, dry_run: bool, say: Callable[[str], None], waits: Sequence[float]) -> HfApi:
    """Return the Hub's interface with a token that it accepts. Raises UserError without one."""
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled
    token = get_token()
    if token is None:
        raise UserError(f"no token for the Hub: {LOGIN}, then push again")
    api = HfApi(token=token)
    check_connection(api.endpoint, say)
    user = Retry(say, waits)("asking the Hub for the user of this token", api.whoami)
    if dry_run:  # nothing will be written, where the Hub itself would refuse
        namespaces = [
            user["name"],
            *(organisation["name"] for organisation in user.get("orgs", [])),
        ]
        if to.split("/")[0] not in namespaces:
            raise UserError(
                f"no right to push to {to}: the token is {user['name']}'s; choose"
                f" {user['name']}/NAME"
            )
    return api


def _update(
    repo: Repo, files: Files, message: str, dry_run: bool, onnx: bool
) -> tuple[PushResult, str | None]:
    """Commit what differs between the files and the repo.

    Returns the result, and the commit that holds all of the files.
    """
    say, result = repo.retry.say, PushResult(repo.name, repo.branch, {})
    result.files = {path: file_size(file) for path, file in files.items()}
    local = {path: FileHashes.of(file) for path, file in files.items()}
    for attempt in (1, 2):
        state = repo.read()
        result.changed = [path for path in files if state.hashes.get(path) not in local[path]]
        result.deleted = [p for p in state.hashes if p not in files and is_optional(p, onnx)]
        for path in result.deleted:
            say(f"  to be removed from the repo, because the run no longer has it: {path}")
        if not result.changed and not result.deleted:
            if attempt == 1:
                say(f"nothing changed: {repo.name}@{repo.branch} holds these files already")
                return result, state.head
            # The answer to the first attempt was lost, but its commit arrived.
            result.commit = state.head
            break
        if dry_run:
            say(
                f"dry run: {len(result.changed)} of {len(files)} files would be committed;"
                " nothing was written"
            )
            return result, None
        head = repo.create(state)
        try:
            changed = {path: files[path] for path in result.changed}
            result.commit = repo.commit(changed, result.deleted, message, head)
            break
        except HfHubHTTPError as error:
            if attempt == 2 or error.response.status_code not in (409, 412):
                raise
            say("another commit came in between; reading the repo again")
    result.url = f"{repo.api.endpoint}/{repo.name}/commit/{result.commit}"
    say(f"pushed {len(result.changed)} files: {result.url}")
    return result, result.commit


def _commit_message(metrics: dict[str, Any]) -> str:
    model = metrics.get("base_model") or "a model trained from scratch"
    method = f" {metrics['method_description']}" if metrics.get("method_description") else ""
    accuracy, data = 100 * metrics["test_accuracy"], metrics.get("dataset", "the data set")
    interval = ""
    if ends := metrics.get("test_accuracy_ci95"):
        interval = f" (95 % interval {100 * ends[0]:.2f} to {100 * ends[1]:.2f})"
    return f"{model}{method}: {accuracy:.2f} % on {data} test{interval}"


def _readable_size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
