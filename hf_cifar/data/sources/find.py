"""The source that a `dataset_name` stands for."""

from __future__ import annotations

import re
from pathlib import Path

from hf_cifar.data.sources import (
    archives,
    folders,
    numpy_files,
    parquet,
    picture_lists,
    saved,
)
from hf_cifar.data.sources.base import Source
from hf_cifar.data.sources.columns import Columns
from hf_cifar.errors import UserError

SAMPLE = Path(__file__).parents[2] / "sample"


def find_source(
    dataset_name: str,
    revision: str | None = None,
    config: str | None = None,
    columns: Columns | None = None,
    *,
    needs_labels: bool = True,
) -> Source:
    """Return the data set that `dataset_name` names: `sample`, a folder, a CIFAR archive or a Hub
    id. Raises UserError if there is none.

    revision, config, columns: the recipe's further keys about the data set. needs_labels: whether a
    folder of pictures that nothing gives a class is refused.
    """
    columns = columns or Columns()
    if dataset_name == "sample":
        return parquet.find(SAMPLE, "sample", config, columns)
    path = Path(dataset_name).expanduser()
    if path.is_dir():
        return _find_folder(path, config, columns, needs_labels)
    if path.is_file():
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            return archives.find(path, path.name)
        if path.suffix == ".npy":
            return numpy_files.find(path)
        raise UserError(
            f"dataset_name {dataset_name} is a file, but no CIFAR archive (.tar.gz) and no .npy;"
            " name a folder"
        )
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", dataset_name):
        raise UserError(
            f"dataset_name {dataset_name}: there is no such folder; correct the path or set"
            " dataset_name: sample"
        )
    return saved.find_hub(dataset_name, revision, config, columns)


def _find_folder(path: Path, config: str | None, columns: Columns, needs_labels: bool) -> Source:
    name = path.resolve().name
    if folder := archives.unpacked(path):
        return archives.find(folder, name)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return saved.find_folder(path, name, columns)
    if any(file.name != "metadata.parquet" for file in path.rglob("*.parquet")):
        return parquet.find(path, name, config, columns)
    if source := picture_lists.find(path, name, columns.label, columns.several_labels):
        return source
    unlabelled = None if needs_labels else folders.find_unlabelled(path, name)
    return unlabelled or folders.find(path, name)
