"""What a data set is before it is read: the splits it brings, what its files say about themselves,
how to open it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_cifar.data.decode_split import EncodedImages, RawImages
from hf_cifar.data.regular_files import MAX_TEXT_BYTES, read_regular_file

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Source:
    """A data set that was found but not read.

    splits: those of train, validation and test that it brings.
    identity, state: see `SplitRequest`.
    open: open(split, folder) reads the labels and gives access to the pictures; it may keep files
        in `folder`.
    messages: lines for the log.
    files: files(split) returns the path of each row's picture, or None where a row has none; None
        where pictures are no files.
    column: column(split, name) returns a further column of the split's table, a value for each
        row; None where there is no table. Raises UserError for a column that there is not.
    """

    name: str
    license: str | None
    splits: tuple[str, ...]
    identity: str
    state: str
    open: Callable[[str, Path], EncodedImages | RawImages]
    messages: tuple[str, ...] = ()
    files: Callable[[str], Sequence[str | None]] | None = None
    column: Callable[[str, str], Sequence[Any]] | None = None


def file_state(path: Path) -> str:
    """Return a file's name, size in bytes and time of change in nanoseconds."""
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def read_card(folder: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Return the licence and the features of a folder's README.md, as far as it says them.

    The features are as `datasets.Features.to_dict` has them.
    """
    import yaml

    try:
        text = read_regular_file(folder / "README.md", MAX_TEXT_BYTES).decode("utf-8")
        front = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    except (OSError, ValueError, IndexError, RecursionError, yaml.YAMLError):
        return None, {}
    front = front if isinstance(front, dict) else {}
    license, info = _only(front.get("license")), _only(front.get("dataset_info"))
    listed = info.get("features") if isinstance(info, dict) else None
    features: dict[str, dict[str, Any]] = {}
    for feature in listed if isinstance(listed, list) else []:
        name, kind = (
            (feature.get("name"), feature.get("dtype")) if isinstance(feature, dict) else ("", "")
        )
        if not isinstance(name, str):
            continue
        if kind == "image":
            features[name] = {"_type": "Image"}
        elif isinstance(kind, dict) and isinstance(kind.get("class_label"), dict):
            features[name] = {"_type": "ClassLabel", "names": kind["class_label"].get("names")}
    return license if isinstance(license, str) else None, features


def _only(value: Any) -> Any:
    """Return the first item of a list, or the value itself."""
    return value[0] if isinstance(value, list) and value else value
