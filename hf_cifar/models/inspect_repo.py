"""A model that the user names: found in a folder or on the Hub, and checked before it is loaded.

Names are `user/name`, `user/name@revision` or a folder. Code from a repo never runs, and pickles
are opened with `weights_only=True` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
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
from hf_cifar.models.check_config import (
    check_config,
    check_labels,
    check_processor_config,
    read_json,
)
from hf_cifar.models.model_files import (
    INDEXES,
    KNOWN_PICTURES,
    ModelFiles,
    check_pickle,
    indexed_files,
)
from hf_cifar.network import check_connection

LOGIN = "run `hf auth login` or set HF_TOKEN"
CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
CARD = "README.md"


def resolve_model(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Return a folder as it is, or the repo's name and revision: ("user/name@rev", None) gives
    ("user/name", "rev").

    Raises UserError for what is neither a folder nor a repo's name, and for two revisions.
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser()), revision
    repo, at, revision_in_name = name.partition("@")
    if at and not revision_in_name:
        raise UserError(f"model {name!r} names no revision after the @: write USER/NAME@REVISION")
    if at and revision and revision != revision_in_name:
        raise UserError(f"model {name!r} and revision {revision!r} differ: write one of them")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise UserError(
            f"model {name!r}: no such folder; name a run folder, a model folder or USER/NAME on the"
            " Hub"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UserError(
            f"model {name!r} is neither a folder nor a repo name: write USER/NAME or a path"
        ) from None
    return repo, revision_in_name or revision or None


def fetch_model(
    name: str, revision: str | None = None, *, classifier: bool, weights: bool = True
) -> ModelFiles:
    """Return the checked files of a model, downloaded if need be: configs, card and weights, and
    what `hf-cifar calibrate` added to a classifier.

    Without a network, what is in the Hub's cache will do.

    name, revision: as `resolve_model` returns them.
    classifier: whether the model must be an image classifier with a name for each of its classes.
    weights: whether to fetch the weights too.

    Raises UserError: out of reach and not cached; absent, private or gated; no image classifier;
    damaged files; weights that only a full unpickling would load; code of its own.
    """
    repo = _open_repo(name, revision, weights)
    if "config.json" not in repo.files:
        only_adapter = "adapter_config.json" in repo.files
        why = (
            "it holds only an adapter: name the merged model" if only_adapter else "no config.json"
        )
        raise UserError(f"{repo.name} holds no image-classification model: {why}")
    configs = {file: repo.json(file) for file in CONFIGS if file in repo.files}
    config, where = configs["config.json"], f"{repo.name}: config.json"
    check_config(config, where)
    for file in CONFIGS[1:]:
        check_processor_config(configs.get(file, {}), f"{repo.name}: {file}")
    if classifier:
        _check_classifier(config, repo.name)
        check_labels(config, where)
    weight_files = _weight_files(repo) if weights else []
    more = [KNOWN_PICTURES] if classifier and weights and config.get("reject") else []
    folder = repo.folder or _download(repo, revision, [*configs, CARD, *weight_files, *more])
    return ModelFiles(name, repo.name, folder, repo.commit, configs, weight_files)


@dataclass
class _Repo:
    """A repo or a folder: its top-level files, and how to get one of them as a local path.

    name: how messages call it. folder: where all of it lies already.
    """

    name: str
    commit: str | None
    files: set[str]
    get: Callable[[str], Path]
    folder: Path | None = None

    def json(self, file: str) -> dict[str, Any]:
        return read_json(self.get(file), f"{self.name}: {file}")


def _local_repo(name: str, folder: Path, commit: str | None = None) -> _Repo:
    files = {path.name for path in folder.iterdir() if path.is_file()}
    return _Repo(name, commit, files, lambda file: folder / file, folder)


def _open_repo(name: str, revision: str | None, weights: bool) -> _Repo:
    if Path(name).is_dir():
        return _local_repo(name, Path(name))
    at = f"{name}@{revision}" if revision else name
    try:
        if not constants.HF_HUB_OFFLINE:
            check_connection(constants.ENDPOINT)
        info = HfApi().model_info(name, revision=revision)
        files = {sibling.rfilename for sibling in info.siblings or []}
        repo = _Repo(
            at, info.sha, files, lambda f: Path(hf_hub_download(name, f, revision=revision))
        )
        if getattr(info, "gated", False) and files:
            repo.get(min(files))  # the description of a gated repo is public, its files are not
        return repo
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
        why = f"the Hub answered {status}" if status else "no Hub in reach"
        return _cached_repo(name, revision, weights, why)


def _cached_repo(name: str, revision: str | None, weights: bool, why: str) -> _Repo:
    """Return what the Hub's cache holds of a repo. Raises UserError if it is not enough.

    why: the reason for the message that the Hub can't be asked.
    """
    at = f"{name}@{revision}" if revision else name
    cached = try_to_load_from_cache(name, "config.json", revision=revision)
    folder = Path(cached).parent if isinstance(cached, str) else None
    if folder is None or (weights and not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        raise UserError(
            f"model {at}: {why} and it is not in the cache: go online once and"
            f" run `hf download {name}`, or name a local folder"
        )
    return _local_repo(at, folder, commit=folder.name)


def _check_classifier(config: dict[str, Any], name: str) -> None:
    architectures = [str(architecture) for architecture in config.get("architectures") or []]
    if not architectures and "architecture" in config:  # timm's config, for transformers' wrapper
        architectures = ["TimmWrapperForImageClassification"]
    if not any("ForImageClassification" in architecture for architecture in architectures):
        raise UserError(
            f"{name} holds no image-classification model: its architecture is"
            f" {', '.join(architectures) or 'none'}"
        )


def _weight_files(repo: _Repo) -> list[str]:
    """Return the names of the files that hold the weights, with that of their index first."""
    for single, index in INDEXES.items():
        if single in repo.files:
            weights = [single]
        elif index in repo.files:
            suffix = Path(single).suffix
            weights = [index, *indexed_files(repo.json(index), suffix, f"{repo.name}: {index}")]
        else:
            continue
        if absent := sorted(set(weights) - repo.files):
            raise UserError(f"{repo.name} lacks {absent[0]}, which its {index} names")
        for file in weights:
            if file.endswith(".bin"):
                check_pickle(repo.get(file), f"{repo.name}: {file}")
        return weights
    pickles = sorted(file for file in repo.files if file.endswith((".pth", ".pt", ".ckpt", ".pkl")))
    why = f"only {pickles[0]}; convert it to safetensors first" if pickles else "no weights"
    raise UserError(f"{repo.name}: {why} (model.safetensors)")


def _download(repo: _Repo, revision: str | None, files: list[str]) -> Path:
    name = repo.name.partition("@")[0]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (HTTPError, OSError) as error:
        raise UserError(
            f"model {repo.name}: download failed ({type(error).__name__}); repeat when online"
        ) from None
    if folder.name != repo.commit:
        raise UserError(f"model {repo.name} changed on the Hub while it was read; repeat")
    return folder
