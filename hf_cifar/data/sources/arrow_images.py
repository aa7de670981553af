"""Pictures in Arrow stream files: the cached copy of parquet files, and what `datasets` keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.data.decode import MAX_PICTURE_BYTES, reason
from hf_cifar.data.regular_files import inside, read_regular_file
from hf_cifar.data.sources.columns import joined_lists, label_array
from hf_cifar.errors import UserError
from hf_cifar.files import FULL_DISK


@dataclass
class ArrowImages:
    """Rows of Arrow stream files, memory-mapped; each process that asks for a row maps them anew.

    roots: folders in which files that rows name must lie; relative paths start from the first.
    where: the data set and split, for messages. items: see `ChosenColumns`.
    """

    files: list[Path]
    image_column: str
    label_column: str
    label_names: list[str]
    roots: tuple[Path, ...]
    where: str
    items: list[str] | None = None

    @cached_property
    def table(self) -> Any:
        """The two columns of all files as a `pyarrow.Table`. Raises UserError for broken files."""
        import pyarrow as pa

        columns = list(dict.fromkeys([self.image_column, self.label_column]))
        parts = []
        for file in self.files:
            with readable(file):
                part = pa.ipc.open_stream(pa.memory_map(str(file))).read_all().select(columns)
                part.validate(full=True)  # else offsets of a hostile file point anywhere
                parts.append(part)
        with readable(self.files[0]):
            return pa.concat_tables(parts)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [N]. Raises UserError for a row without a label."""
        return label_array(self.label_values, self.label_names, self.where)

    @property
    def label_values(self) -> Any:
        """The label column; lists of labels as texts such as `cat|dog`. Raises UserError."""
        return joined_lists(self.table.column(self.label_column), self.items, self.where)

    def encoded(self, row: int) -> bytes:
        """Return the content of the picture's file. Raises OSError where there is none."""
        value = self.table.column(self.image_column)[row].as_py()
        if isinstance(value, dict):
            path = value.get("path")
            if value["bytes"] is None and path:
                return read_regular_file(inside(self.roots, path), MAX_PICTURE_BYTES)
            value = value["bytes"]
        if value is None:
            raise OSError("the row holds no image")
        return value

    def name(self, row: int) -> str:
        """Return what to call the row in a message: its number, and its file name if it has one."""
        value = self.table.column(self.image_column)[row].as_py()
        path = value.get("path") if isinstance(value, dict) else None
        return f"row {row} ({Path(path).name})" if path else f"row {row}"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "table"}


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a broken file into a UserError that names it."""
    import pyarrow as pa

    try:
        yield
    except (
        *(pa.ArrowException, OSError, EOFError, MemoryError, KeyError),
        UnicodeDecodeError,  # of the name of a column
    ) as error:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise  # the disk of the copy is full, which the image cache reports
        raise UserError(
            f"{path.parent.name}/{path.name} cannot be read ({reason(error)}); download or save the"
            " data set again"
        ) from None
