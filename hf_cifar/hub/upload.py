"""Files committed to a repo on the Hub: listed first, and only what differs is sent."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from hf_cifar.errors import UserError
from hf_cifar.hub.failures import LOGIN, explained
from hf_cifar.hub.read_back import read_back
from hf_cifar.hub.repo import FileHashes, Repo, check_repo_name
from hf_cifar.hub.retry import WAITS, Retry
from hf_cifar.hub.run_files import Files, file_size
from hf_cifar.network import check_connection


@dataclass(frozen=True)
class PushOptions:
    """How files are pushed.

    private: create a private repo, and push to no public one. revision: the branch, `main` if None.
    dry_run: write nothing. check: download the commit into an empty cache, compare checksums, and
    compare the model's answers to three images. say: is told what happens, in lines. waits: seconds
    before a failed request is repeated.
    """

    private: bool = False
    revision: str | None = None
    dry_run: bool = False
    check: bool = True
    say: Callable[[str], None] = print
    waits: Sequence[float] = WAITS

    @property
    def branch(self) -> str:
        return self.revision or "main"

    def words(self) -> str:
        """Return the options as words of a command line."""
        words = " --private" if self.private else ""
        words += f" --revision {shlex.quote(self.revision)}" if self.revision else ""
        words += "" if self.check else " --no-check"
        return words + (" --dry-run" if self.dry_run else "")


DEFAULTS = PushOptions()


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


def send(
    run: Path,
    to: str,
    prepare: Callable[[], tuple[Files, str]],
    options: PushOptions,
    *,
    words: str,
    kind: str = "model",
    is_optional: Callable[[str], bool],
) -> PushResult:
    """Push files to the repo `to` ("user/name") as one commit, and read it back.

    run: the folder that they are made of. prepare: returns them and the commit's message. words: of
    the command line that repeats the push, such as `--to user/name`. kind: model or space.
    is_optional: as in `update`. Raises UserError and PushError; see `push`.
    """
    check_repo_name(to)
    try:
        files, message = prepare()
        where = to if kind == "model" else f"{kind}s/{to}"
        list_files(files, f"{where}@{options.branch}", options.say)
        api = log_in(to, options)
        retry = Retry(options.say, options.waits)
        repo = Repo(api, to, options.branch, options.private, retry, kind=kind)
        result, head = update(repo, files, message, options.dry_run, is_optional)
        if options.check and not options.dry_run:
            assert head is not None
            read_back(repo, head, files, run)
            result.checked = True
        return result
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        command = f"hf-cifar push {shlex.quote(str(run))} {words}{options.words()}"
        raise explained(error, to, command) from error


def list_files(files: Files, destination: str, say: Callable[[str], None]) -> None:
    sizes = {path: file_size(file) for path, file in files.items()}
    say(f"to {destination}:")
    for path, size in sizes.items():
        say(f"  {_readable_size(size):>9}  {path}")
    say(f"  {_readable_size(sum(sizes.values())):>9}  in {len(files)} files")


def log_in(to: str, options: PushOptions) -> HfApi:
    """Return the Hub's interface with a token that it accepts. Raises UserError without one."""
    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled
    token = get_token()
    if token is None:
        raise UserError(f"no token for the Hub: {LOGIN}, then push again")
    api = HfApi(token=token)
    check_connection(api.endpoint, options.say)
    retry = Retry(options.say, options.waits)
    user = retry("asking the Hub for the user of this token", api.whoami)
    if options.dry_run:  # nothing will be written, where the Hub itself would refuse
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


def update(
    repo: Repo, files: Files, message: str, dry_run: bool, is_optional: Callable[[str], bool]
) -> tuple[PushResult, str | None]:
    """Commit what differs between the files and the repo.

    is_optional: whether a file of the repo is removed where it is not among the files.
    Returns the result, and the commit that holds all of the files.
    """
    say, result = repo.retry.say, PushResult(repo.name, repo.branch, {})
    result.files = {path: file_size(file) for path, file in files.items()}
    local = {path: FileHashes.of(file) for path, file in files.items()}
    for attempt in (1, 2):
        state = repo.read()
        result.changed = [path for path in files if state.hashes.get(path) not in local[path]]
        result.deleted = [p for p in state.hashes if p not in files and is_optional(p)]
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
    result.url = f"{repo.api.endpoint}/{repo.path}/commit/{result.commit}"
    say(f"pushed {len(result.changed)} files: {result.url}")
    return result, result.commit


def _readable_size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
