"""Parquet files named after their splits, in a folder, as the Hub has them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.data.decode import MAX_PICTURE_BYTES
from hf_cifar.data.sources.arrow_images import ArrowImages, readable
from hf_cifar.data.sources.base import SPLITS, Source, file_state, read_card
from hf_cifar.data.sources.columns import (
    ChosenColumns,
    Columns,
    choose_columns,
    class_names,
    features_of,
    joined_lists,
    picture_paths,
)
from hf_cifar.errors import UserError
from hf_cifar.files import json_digest

COPIED_ROWS, COPIED_BYTES = 1024, 2**26  # of one table of the copy
BATCH_BYTES = 2**28  # that a batch may take, should each row repeat all that its row group holds
# Encoded pictures hardly compress. A file beyond these two is one that is made to fill the memory
# or the disk.
EXPANSION = 20
EXPANDED_BYTES = 2**29
MAX_EMPTY_ROWS = 1_000_000  # rows that a file may have, unless it has a byte for each


def find(root: Path, name: str, config: str | None, wanted: Columns) -> Source:
    """Return the data set of the parquet files below `root`. Raises UserError if there is none.

    config: `dataset_config_name`, the folder of one of several configurations.
    """
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
    for path in (path for paths in splits.values() for path in paths):
        if not path.is_file():
            raise UserError(f"{name}: {path.name} is not a regular file; remove it")
    license, card_features = read_card(root)

    def columns_of(split: str) -> ChosenColumns:
        import pyarrow.parquet as pq

        with readable(splits[split][0]):
            schema = pq.read_schema(splits[split][0])
            features = features_of(schema) or card_features
            return choose_columns(schema, features, wanted, name)

    def open_split(split: str, folder: Path) -> ArrowImages:
        image, label, names, items = columns_of(split)
        if names is None:
            every_file = [path for paths in splits.values() for path in paths]
            names = class_names(
                joined_lists(_column(path, label, every_file[0]), items, f"{name}: {path.name}")
                for path in every_file
            )
        copy = folder / "encoded.arrow"
        if not copy.exists():
            _to_arrow(splits[split], [image, label], copy)
        where = f"{name}, split {split}"
        return ArrowImages([copy], image, label, names, (root,), where, items)

    def column(split: str, key: str) -> list[Any]:
        paths = splits[split]
        with _opened(paths[0]) as parquet:
            columns = parquet.schema_arrow.names
        if key not in columns:
            raise UserError(f"{name}: there is no column {key}, only {', '.join(columns)}")
        return [value for path in paths for value in _column(path, key, paths[0]).to_pylist()]

    def pictures(split: str) -> list[str | None]:
        image = columns_of(split).image
        return [value for path in splits[split] for value in _picture_paths(path, image)]

    state = {split: [file_state(path) for path in paths] for split, paths in splits.items()}
    identity = f"parquet {root.resolve()} {config} {wanted}"
    state_digest = json_digest([state, card_features])
    return Source(
        name,
        license,
        tuple(splits),
        identity,
        state_digest,
        open_split,
        files=pictures,
        column=column,
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file as a `pyarrow.parquet.ParquetFile`. Raises UserError if it can't be read."""
    import pyarrow.parquet as pq

    with readable(path), pq.ParquetFile(path) as parquet:
        rows = parquet.metadata.num_rows
        if rows > max(MAX_EMPTY_ROWS, path.stat().st_size):
            raise OSError(f"it claims to have {rows:,} rows, more than it has bytes")
        yield parquet


def _check_columns(parquet: Any, path: Path, columns: list[str], first: Path) -> None:
    if lacking := set(columns) - set(parquet.schema_arrow.names):
        raise UserError(
            f"{path.name} has no column {', '.join(sorted(lacking))}, which {first.name} has"
        )


def _column(path: Path, column: str, first: Path) -> Any:
    with _opened(path) as parquet:
        _check_columns(parquet, path, [column], first)
        return parquet.read([column]).column(0)


def _picture_paths(path: Path, image_column: str) -> list[str | None]:
    """Return the path that each row names for its picture; the pictures themselves are not read."""
    with _opened(path) as parquet:
        table = parquet.read([f"{image_column}.path"])
        if table.num_columns == 0:  # the column holds the bytes alone
            return [None] * parquet.metadata.num_rows
        return picture_paths(table.column(0))


def _to_arrow(files: list[Path], columns: list[str], copy: Path) -> None:
    """Rewrite parquet files as one Arrow stream, from which any row can be read without
    decompressing the rows beside it.
    """
    import pyarrow as pa

    with _opened(files[0]) as parquet:
        first = parquet.schema_arrow
    schema = pa.schema([first.field(column) for column in columns])
    with copy.open("wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for path in files:
            with _opened(path) as parquet:
                _check_columns(parquet, path, columns, files[0])
                for table in _tables(parquet, path, columns, schema):
                    writer.write_table(table.combine_chunks())


def _tables(parquet: Any, path: Path, columns: list[str], schema: Any) -> Iterator[Any]:
    """Yield the rows in tables of about `COPIED_ROWS`, since a row is found fast among few tables.

    Raises OSError for pictures that are too large, and a file that expands without measure.
    """
    import pyarrow as pa

    most = max(EXPANDED_BYTES, EXPANSION * path.stat().st_size)
    rows = _batch_rows(parquet.metadata, columns[0], most)
    waiting: list[Any] = []
    expanded = pending = 0
    for batch in parquet.iter_batches(rows, columns=columns):
        table = pa.Table.from_batches([batch]).select(columns).cast(schema)
        _check_sizes(table.column(0))
        waiting.append(table)
        expanded, pending = expanded + table.nbytes, pending + table.nbytes
        if expanded > most:
            raise OSError(f"it expands to over {most / 1e9:.1f} GB")
        if len(waiting) * rows >= COPIED_ROWS or pending >= COPIED_BYTES:
            yield pa.concat_tables(waiting)
            waiting, pending = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _batch_rows(metadata: Any, image_column: str, most_bytes: int) -> int:
    """Return how many rows to read at once. Raises OSError for a file that expands without measure.

    A row group can hold one large picture and repeat it in every row.
    """
    largest = 0
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.split(".")[0] == image_column
        )
        if size > most_bytes:
            raise OSError(f"it expands to {size / 1e9:.1f} GB")
        largest = max(largest, size)
    return int(np.clip(BATCH_BYTES // max(largest, 1), 1, COPIED_ROWS))


def _check_sizes(column: Any) -> None:
    """Raise OSError if a picture of this column is larger than is read."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    pictures = pc.struct_field(column, "bytes") if types.is_struct(column.type) else column
    largest = pc.max(pc.binary_length(pictures)).as_py() or 0
    if largest > MAX_PICTURE_BYTES:
        raise OSError(
            f"a picture has {largest / 1e6:,.0f} MB, more than the"
            f" {MAX_PICTURE_BYTES / 1e6:,.0f} MB that are read"
        )
