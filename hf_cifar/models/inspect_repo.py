"""A model named by the user, looked at before it is loaded: is it there, and is it safe and fit to
load?

Names are `user/name`, `user/name@revision` or a local folder. Code from a repo is never run and
pickles are opened with `weights_only=True` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hf_cifar.errors import UserError

LOGIN = "run `hf auth login` or set HF_TOKEN"
SIDE_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "README.md")


def resolve_model(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """("user/name@rev", None) -> ("user/name", "rev"); a local folder stays as it is.

    Raises:
        UserError: neither a folder nor a repo name, or two different revisions.
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser()), revision
    repo, at, told = name.partition("@")
    if at and (not told or (revision and revision != told)):
        why = f"and revision {revision!r} differ" if told else "names no revision after the '@'"
        raise UserError(f"model {name!r} {why}: write USER/NAME@REVISION")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise UserError(
            f"model {name!r}: no such folder; name a run folder, a model folder or USER/NAME on the Hub"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(
            f"model {name!r} is neither a folder nor a repo name: write USER/NAME or a path"
        ) from None
    return repo, told or revision or None


@dataclass
class _Source:
    """Where a model's files come from: their names and how to get one of them as a local path."""

    name: str
    commit: str | None
    files: set[str]
    get: Callable[[str], Path]
    folder: Path | None = None  # where all of it lies already

    def json(self, file: str) -> dict[str, Any]:
        if file not in self.files:
            return {}
        try:
            found = json.loads(self.get(file).read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{self.name}: {file} is not valid JSON") from None
        return found if isinstance(found, dict) else {}


def _folder_source(name: str, folder: Path, commit: str | None = None) -> _Source:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return _Source(name, commit, files, lambda file: folder / file, folder)


def _source(name: str, revision: str | None) -> _Source:
    name, revision = resolve_model(name, revision)
    if Path(name).is_dir():
        return _folder_source(name, Path(name))
    at = f"{name}@{revision}" if revision else name
    try:
        info = HfApi().model_info(name, revision=revision)
        files = {sibling.rfilename for sibling in info.siblings or []}
        source = _Source(
            at, info.sha, files, lambda file: Path(hf_hub_download(name, file, revision=revision))
        )
        for file in sorted(files)[:1]:
            if getattr(info, "gated", False):
                source.get(file)  # the description of a gated repo is public, its files are not
        return source
    except GatedRepoError:
        raise UserError(f"model {at} is gated: ask for access on its page, then {LOGIN}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"model {at} does not exist or is private: check the name, or {LOGIN}"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"model {name} has no revision {revision!r}: name a branch, a tag or a commit of it"
        ) from None
    except (HTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, HfHubHTTPError) and status in (401, 403):
            raise UserError(
                f"model {at}: the Hub refuses access ({status}): {LOGIN} with a valid token"
            ) from None
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        folder = Path(cached).parent if isinstance(cached, str) else None
        if folder is None or not any([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
            why = f"the Hub answered {status}" if status else "no Hub in reach"
            raise UserError(
                f"model {at}: {why} and it is not in the cache: go online once and run `hf download {name}`, "
                "or name a local folder"
            ) from None
        return _folder_source(at, folder, commit=folder.name)


def check_model_repo(name: str, revision: str | None = None, *, classifier: bool = True) -> None:
    """Looks at a repo or folder before it is loaded; works offline for what is in the cache.

    With `classifier=False` any backbone will do; otherwise the architecture must be an image
    classifier.

    Raises:
        UserError: not in reach and not cached; absent, private or gated; no image classifier;
        weights that only a
            full unpickling would load; code of its own (`trust_remote_code`).
    """
    _check(_source(name, revision), classifier)


def fetch_model(name: str, revision: str | None = None) -> tuple[Path, str | None]:
    """(local folder, commit) of a checked image classifier: its config, processor, card and
    weights, nothing else.

    Raises:
        UserError: as `check_model_repo`.
    """
    source = _source(name, revision)
    weights = _check(source, classifier=True)
    if source.folder is not None:
        return source.folder, source.commit
    repo, revision = resolve_model(name, revision)
    wanted = [*(file for file in SIDE_FILES if file in source.files), *weights]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (HTTPError, OSError) as error:
        raise UserError(
            f"model {source.name}: download failed ({type(error).__name__}); repeat when online"
        ) from None
    if folder.name != source.commit:
        raise UserError(f"model {source.name} changed on the Hub while it was read; repeat")
    return folder, source.commit


def _check(source: _Source, classifier: bool) -> list[str]:
    """The weight files to load."""
    if "config.json" not in source.files:
        adapter = "adapter_config.json" in source.files
        why = (
            "it holds only an adapter: name the merged model"
            if adapter
            else "it has no config.json"
        )
        raise UserError(f"{source.name} holds no image-classification model: {why}")
    config = source.json("config.json")
    for file in ("config.json", "preprocessor_config.json", "processor_config.json"):
        if "auto_map" in source.json(file):
            raise UserError(
                f"{source.name} runs code of its own (auto_map in {file}): trust_remote_code is refused"
            )
    architectures = [str(name) for name in config.get("architectures") or []]
    if (
        not architectures and "architecture" in config
    ):  # timm's own config, read by transformers' wrapper
        architectures = ["TimmWrapperForImageClassification"]
    if classifier and not any("ForImageClassification" in name for name in architectures):
        told = ", ".join(architectures) or "none"
        raise UserError(
            f"{source.name} holds no image-classification model: its architecture is {told}"
        )
    top = {file for file in source.files if "/" not in file}
    for index, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        if single in top:
            weights = [single]
        elif index in top:
            weights = [index, *sorted(set(source.json(index).get("weight_map", {}).values()))]
        else:
            continue
        for file in weights:
            if file.endswith(".bin"):
                _check_pickle(source, file)
        return weights
    raise UserError(
        f"{source.name} holds no weights: neither model.safetensors nor pytorch_model.bin"
    )


def _check_pickle(source: _Source, file: str) -> None:
    import pickle

    import torch

    try:
        torch.load(source.get(file), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError):
        raise UserError(
            f"{source.name}: {file} is a pickle that weights_only=True can't load, so it may run code; "
            "convert it where it is trusted: load it there and save_pretrained() writes model.safetensors"
        ) from None
