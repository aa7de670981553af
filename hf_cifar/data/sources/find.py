"""The source that a `dataset_name` stands for."""

from __future__ import annotations

import re
from pathlib import Path

from hf_cifar.data.sources import archives, arrow, folders
from hf_cifar.data.sources.base import Source
from hf_cifar.errors import UserError

SAMPLE = Path(__file__).parents[2] / "sample"


def find_source(
    dataset_name: str,
    revision: str | None = None,
    config: str | None = None,
    columns: arrow.Columns | None = None,
) -> Source:
    """What `dataset_name` names: `sample`, a folder, a CIFAR archive, a Hub id. UserError if there
    is nothing.
    """
    columns = columns or arrow.Columns()
    if dataset_name == "sample":
        return arrow.find_parquet(SAMPLE, "sample", config, columns)
    path = Path(dataset_name).expanduser()
    if path.is_dir():
        name = path.resolve().name
        if folder := archives.unpacked(path):
            return archives.find(folder, name)
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return arrow.find_saved(path, name, columns)
        if next(path.rglob("*.parquet"), None):
            return arrow.find_parquet(path, name, config, columns)
        return folders.find(path, name)
    if path.is_file():
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return archives.find(path, path.name)
        raise UserError(
            f"dataset_name {dataset_name} is a file, but no CIFAR archive (.tar.gz); name a folder"
        )
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", dataset_name):
        raise UserError(
            f"dataset_name {dataset_name}: there is no such folder; correct the path or set dataset_name: sample"
        )
    return arrow.find_hub(dataset_name, revision, config, columns)
