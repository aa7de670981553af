"""The Hub, both ways: push a finished run, and look at a model repo before it is loaded.

huggingface_hub speaks to the server; what is added here is what a push must not get wrong: only
what is meant to go up goes up, nothing private is in it, a failure leaves the run whole and can be
repeated, and what arrived is what was sent.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hf_cifar.errors import UserError
from hf_cifar.hub.privacy import scan
from hf_cifar.hub.read_back import FileHashes, read_back
from hf_cifar.hub.retry import LOGIN, explained, retried
from hf_cifar.recipe.load import load_recipe
from hf_cifar.reporting.model_card import write_card

REQUIRED = (
    "model.safetensors",
    "config.json",
    "preprocessor_config.json",
    "README.md",
    "recipe.yaml",
    "metrics.json",
)
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
# What a push may also take, and takes away again from the repo where the run has it no longer.
OPTIONAL = ("adapter/*.json", "adapter/*.safetensors", "plots/*.png")


@dataclass
class PushResult:
    """What a push did: `commit` is None where nothing was written (nothing changed, or a dry run)."""

    repo: str
    revision: str
    files: dict[str, int]  # path in the repo -> bytes
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
    say: Callable[[str], None] = print,
) -> PushResult:
    """Pushes a finished run folder to the model repo `to` ("user/name") as one commit, and reads it
    back.

    The run folder is only read. Repo and branch (`revision`, default main) are made where they are
    missing. With `dry_run` nothing is written. With `check` the commit is downloaded into an empty
    cache, compared by sha256, and asked for three test images beside the local folder.

    Raises:
        UserError: bad input: run not finished, something private in a file, no or a bad token, no
        right to `to`.
        PushError: the network or the server failed; the line names the command that repeats the
        push.
    """
    run = Path(run)
    _check_repo_name(to)
    command = f"hf-cifar push {shlex.quote(str(run))} --to {to}" + (" --private" if private else "")
    command += (f" --revision {shlex.quote(revision)}" if revision else "") + (
        "" if check else " --no-check"
    )
    command += " --dry-run" if dry_run else ""
    metrics = _check_finished(run)
    try:
        with tempfile.TemporaryDirectory() as aside:
            public = _public(run, Path(aside) / run.resolve().name, metrics, to)
            return _push(run, public, metrics, to, private, revision, dry_run, check, say)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise explained(error, to, command) from error


def _public(run: Path, to: Path, metrics: dict[str, Any], repo: str) -> Path:
    """A folder of links to what goes up; the run itself is not touched.

    The recipe's local folders stand there by name only, and the card's snippets load from `repo`.
    """
    for path in _files_of(run):
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).symlink_to((run / path).resolve())
    recipe = load_recipe(str(run / "recipe.yaml"))
    if (public := recipe.public()) != recipe:
        (to / "recipe.yaml").unlink()
        (to / "recipe.yaml").write_text(public.to_yaml())
    if (
        metrics.get("versions") and metrics.get("hub_model_id") != repo
    ):  # our trainer's metrics, which make a card
        card = (run / "README.md").read_text(encoding="utf-8")
        write_card(to)
        edited = (to / "README.md").read_text(encoding="utf-8") != card
        (to / "metrics.json").unlink()
        (to / "metrics.json").write_text(json.dumps(metrics | {"hub_model_id": repo}, indent=1))
        write_card(to)
        if edited:  # what somebody wrote into the card stays
            where = metrics.get("hub_model_id") or f"./{metrics.get('run_name') or to.name}"
            old, new = (json.dumps(name, ensure_ascii=False) for name in (where, repo))
            (to / "README.md").write_text(card.replace(old, new), encoding="utf-8")
    return to


def _push(
    own: Path,
    run: Path,
    metrics: dict[str, Any],
    to: str,
    private: bool,
    revision: str | None,
    dry_run: bool,
    check: bool,
    say: Callable[[str], None],
) -> PushResult:
    files = {path: (run / path).stat().st_size for path in _files_of(run)}
    scan(run, files, allowed=to.split("/"), own=own)
    branch = revision or "main"
    result = PushResult(to, branch, files)
    say(f"to {to}@{branch}:")
    for path, size in files.items():
        say(f"  {_bytes(size):>9}  {path}")
    say(f"  {_bytes(sum(files.values())):>9}  in {len(files)} files")

    token = get_token()
    if token is None:
        raise UserError(f"no token for the Hub: {LOGIN}, then push again")
    api = HfApi(token=token)
    who = retried("asking the Hub who you are", api.whoami, say)
    if dry_run and to.split("/")[0] not in [
        who["name"],
        *(org["name"] for org in who.get("orgs", [])),
    ]:
        raise UserError(
            f"no right to push to {to}: the token is {who['name']}'s; choose {who['name']}/NAME"
        )

    local = {path: FileHashes.of(run / path) for path in files}
    for attempt in (1, 2):
        head, tree, exists = retried(
            "reading the repo", lambda: _remote(api, to, branch, private), say
        )
        result.changed = [path for path in files if tree.get(path) not in local[path]]
        result.deleted = [path for path in tree if path not in files and _optional(path)]
        for path in result.deleted:
            say(f"  removed from the repo, since the run has it no longer: {path}")
        if not result.changed and not result.deleted:
            if attempt == 1:
                say(f"nothing changed: {to}@{branch} holds these files already")
            else:  # the commit whose answer was lost had gone through
                result.commit = head
            break
        if dry_run:
            say(
                f"dry run: {len(result.changed)} of {len(files)} files would be committed; nothing was written"
            )
            return result
        if not exists:
            retried(
                "making the repo", lambda: api.create_repo(to, private=private, exist_ok=True), say
            )
        if head is None:
            if branch != "main":
                retried(
                    "making the branch",
                    lambda: api.create_branch(to, branch=branch, exist_ok=True),
                    say,
                )
            head = retried("reading the repo", lambda: api.model_info(to, revision=branch).sha, say)
        try:
            result.commit = _commit(api, run, to, branch, head, result, _message(metrics), say)
            break
        except HfHubHTTPError as error:
            if attempt == 2 or error.response.status_code not in (409, 412):
                raise
            say("somebody else committed meanwhile; looking again")
    if result.commit:
        result.url = f"{api.endpoint}/{to}/commit/{result.commit}"
        say(f"pushed {len(result.changed)} files: {result.url}")
    if check:
        commit = result.commit or head
        assert commit is not None  # either it was made, or the repo held everything
        read_back(api, run, to, commit, files, say)
        result.checked = True
    return result


def _check_repo_name(to: str) -> None:
    try:
        validate_repo_id(to)
        named = to.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise UserError(
            f"{to!r} is no repo name: write USER/NAME with letters, digits, '-', '_' and '.'"
        )


def _check_finished(run: Path) -> dict[str, Any]:
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    missing = [name for name in REQUIRED if not (run / name).is_file()]
    metrics: dict[str, Any] = {}
    if "metrics.json" not in missing:
        try:
            metrics = json.loads((run / "metrics.json").read_text())
            float(metrics["test_accuracy"])
        except (ValueError, TypeError, KeyError):
            missing.append("test_accuracy in metrics.json")
    if (run / "adapter").is_dir() or "lora" in str(metrics.get("method", "")).lower():
        missing += [name for name in ADAPTER if not (run / name).is_file()]
    if missing:
        raise UserError(
            f"{run} is not a finished run: it lacks {', '.join(missing)}; let its training finish first"
        )
    return metrics


def _files_of(run: Path) -> list[str]:
    """The allow list, in the order it is shown; whatever else lies in the run stays there."""
    found = [path for pattern in OPTIONAL for path in sorted(run.glob(pattern)) if path.is_file()]
    return [*REQUIRED, *(path.relative_to(run).as_posix() for path in found)]


def _optional(path: str) -> bool:
    return any(
        re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]*"), path) for pattern in OPTIONAL
    )


def _bytes(size: int) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.1f} GB"


def _message(metrics: dict[str, Any]) -> str:
    method, base = (
        metrics.get("method", "fine-tune"),
        metrics.get("base_model", "an unnamed backbone"),
    )
    interval = ""
    if bounds := metrics.get("test_accuracy_ci95"):
        interval = f" (95 % interval {100 * bounds[0]:.2f} to {100 * bounds[1]:.2f})"
    data = metrics.get("dataset", "the data set")
    return f"{method} of {base}: {100 * float(metrics['test_accuracy']):.2f} % on {data} test{interval}"


def _remote(
    api: HfApi, to: str, branch: str, private: bool
) -> tuple[str | None, dict[str, str], bool]:
    """(head of the branch or None, path -> hash, whether the repo exists)."""
    try:
        info = api.model_info(to)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            api.whoami()  # a token that is no good is the likelier cause, and says so itself
        return None, {}, False
    if private and not info.private:
        raise UserError(
            f"{to} exists and is public: make it private in its settings, or push without --private"
        )
    try:
        head = api.model_info(to, revision=branch).sha
    except RevisionNotFoundError:
        return None, {}, True
    tree = {}
    for entry in api.list_repo_tree(to, recursive=True, revision=head):
        if lfs := getattr(entry, "lfs", None):
            tree[entry.path] = lfs.sha256
        elif blob := getattr(entry, "blob_id", None):
            tree[entry.path] = blob
    return head, tree, True


def _commit(
    api: HfApi,
    run: Path,
    to: str,
    branch: str,
    head: str | None,
    result: PushResult,
    message: str,
    say: Callable[[str], None],
) -> str:
    added = [CommitOperationAdd(path, run / path) for path in result.changed]
    deleted = [CommitOperationDelete(path) for path in result.deleted]
    # Apart from the commit, so that a commit tried again doesn't upload again; this step retries by
    # itself.
    api.preupload_lfs_files(to, added, revision=branch, free_memory=False)
    return retried(
        "committing",
        lambda: (
            api.create_commit(
                to, [*added, *deleted], commit_message=message, revision=branch, parent_commit=head
            ).oid
        ),
        say,
    )
