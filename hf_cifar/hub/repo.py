"""A repo on the Hub: what it holds, and commits to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hf_cifar.errors import UserError
from hf_cifar.hub.retry import Retry
from hf_cifar.hub.run_files import Files
from hf_cifar.text import visible


@dataclass(frozen=True)
class FileHashes:
    """The two hashes by which the Hub knows a file: git's of a blob, and the SHA-256 of large
    files.
    """

    sha1: str
    sha256: str

    @classmethod
    def of(cls, file: Path | bytes) -> FileHashes:
        if isinstance(file, bytes):
            blob = hashlib.sha1(f"blob {len(file)}\0".encode() + file)
            return cls(blob.hexdigest(), hashlib.sha256(file).hexdigest())
        blob, plain = hashlib.sha1(f"blob {file.stat().st_size}\0".encode()), hashlib.sha256()
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                blob.update(block)
                plain.update(block)
        return cls(blob.hexdigest(), plain.hexdigest())

    def __contains__(self, digest: object) -> bool:
        return digest in (self.sha1, self.sha256)


@dataclass(frozen=True)
class Branch:
    """The state of a branch. head: id of its last commit, None for a branch that does not exist.

    hashes: path -> one of the hashes of that file. repo_exists: whether there is a repo at all.
    """

    head: str | None
    hashes: dict[str, str]
    repo_exists: bool


@dataclass(frozen=True)
class Repo:
    """A branch of the repo `name` ("user/name"), with the right to write by the token of `api`.

    kind: "model" or "space".
    """

    api: HfApi
    name: str
    branch: str
    private: bool
    retry: Retry
    kind: str = "model"

    @property
    def path(self) -> str:
        """Where it is on the Hub's own pages."""
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"

    def read(self) -> Branch:
        """Return the state of the branch. Raises UserError for a public repo if a private one is
        wanted.
        """
        return self.retry("reading the repo", self._read)

    def _read(self) -> Branch:
        try:
            info = self.api.repo_info(self.name, repo_type=self.kind)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:
                self.api.whoami()  # raises if the token is invalid, which is the likelier cause
            return Branch(None, {}, repo_exists=False)
        if self.private and not info.private:
            raise UserError(
                f"{self.name} exists and is public: make it private in its settings, or push"
                " without --private"
            )
        try:
            head = self._head()
        except RevisionNotFoundError:
            return Branch(None, {}, repo_exists=True)
        hashes = {}
        for entry in self.api.list_repo_tree(
            self.name, recursive=True, revision=head, repo_type=self.kind
        ):
            if lfs := getattr(entry, "lfs", None):
                hashes[entry.path] = lfs.sha256
            elif blob := getattr(entry, "blob_id", None):
                hashes[entry.path] = blob
        return Branch(head, hashes, repo_exists=True)

    def _head(self) -> str | None:
        return self.api.repo_info(self.name, repo_type=self.kind, revision=self.branch).sha

    def create(self, state: Branch) -> str:
        """Create the repo and the branch, if they are missing, and return the branch's head."""
        api = self.api
        if not state.repo_exists:
            self.retry(
                "creating the repo",
                lambda: api.create_repo(
                    self.name,
                    private=self.private,
                    exist_ok=True,
                    repo_type=self.kind,
                    space_sdk="gradio" if self.kind == "space" else None,
                ),
            )
        if state.head is not None:
            return state.head
        if self.branch != "main":
            self.retry(
                "creating the branch",
                lambda: api.create_branch(
                    self.name, branch=self.branch, exist_ok=True, repo_type=self.kind
                ),
            )
        head = self.retry("reading the repo", self._head)
        assert head is not None
        return head

    def commit(self, files: Files, deleted: list[str], message: str, head: str) -> str:
        """Commit files and deletions on top of the commit `head`, and return the new commit."""
        added = [CommitOperationAdd(path, file) for path, file in files.items()]
        removed = [CommitOperationDelete(path) for path in deleted]
        # Uploaded before the commit, so that repeating the commit doesn't repeat the upload. The
        # upload is repeated by huggingface_hub itself.
        self.api.preupload_lfs_files(
            self.name, added, revision=self.branch, free_memory=False, repo_type=self.kind
        )
        return self.retry(
            "committing",
            lambda: (
                self.api.create_commit(
                    self.name,
                    [*added, *removed],
                    commit_message=message,
                    revision=self.branch,
                    parent_commit=head,
                    repo_type=self.kind,
                ).oid
            ),
        )


def check_repo_name(name: str) -> None:
    """Raise UserError unless `name` is "user/name" as the Hub takes it."""
    try:
        validate_repo_id(name)
        is_valid = name.count("/") == 1
    except HFValidationError:
        is_valid = False
    if not is_valid:
        raise UserError(
            f"'{visible(name, most=80)}' is no repo name: write USER/NAME with letters, digits,"
            " '-', '_' and '.'"
        )
