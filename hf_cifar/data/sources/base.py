"""What a data set is before it is read: the splits it brings, what its files say about themselves,
how to open it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_cifar.data.decode import Encoded, Pixels

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

    splits: those of train, validation and test that it brings. identity, state: see
    `cache.load_images`. open(split, folder) reads the labels and gives access to the images; it may
    keep files in `folder`.
    """

    name: str
    license: str | None
    splits: tuple[str, ...]
    identity: str
    state: str
    open: Callable[[str, Path], Encoded | Pixels]


def file_state(path: Path) -> str:
    """Size in bytes and time of change in nanoseconds."""
    stat = path.stat()
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}"


def digest(state: Any) -> str:
    """A short name for anything that JSON can hold."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def card(folder: Path) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The licence and the features (as `datasets.Features.to_dict` has them) of a folder's
    README.md, if it says.
    """
    import yaml

    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return None, {}
    if not isinstance(front, dict):
        return None, {}
    license = front.get("license")
    license = license[0] if isinstance(license, list) and license else license
    info = front.get("dataset_info")
    info = info[0] if isinstance(info, list) and info else info
    features: dict[str, dict[str, Any]] = {}
    for feature in info.get("features", []) if isinstance(info, dict) else []:
        kind = feature.get("dtype")
        if kind == "image":
            features[feature["name"]] = {"_type": "Image"}
        elif isinstance(kind, dict) and "class_label" in kind:
            names = kind["class_label"].get("names", {})
            names = (
                [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else names
            )
            features[feature["name"]] = {
                "_type": "ClassLabel",
                "names": [str(name) for name in names],
            }
    return str(license) if license else None, features
