"""labels.csv beside pictures: rows that `hf-cifar label` adds and a person fills in."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_cifar.data.sources.picture_lists import (
    LABELS_FILE,
    MAX_TABLE_BYTES,
    TABLES,
    delimiter_of,
    read_table,
)
from hf_cifar.errors import UserError
from hf_cifar.files import atomic_file
from hf_cifar.text import visible

COLUMNS = ("file_name", "label", "suggested", "confidence")


@dataclass(frozen=True)
class LabelTable:
    """The labels.csv of a folder of pictures, which may not be there yet.

    content: its bytes. columns: of its header. listed: the pictures in it, as paths from the
    folder. unlabelled: rows without a label. next_line: where a further row would stand, from 1.
    """

    path: Path
    content: bytes
    columns: list[str]
    listed: frozenset[str]
    unlabelled: int
    next_line: int

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows with the keys COLUMNS below what is there, which stays as it is.

        Raises UserError where the file can't be written, or a name is no Unicode text.
        """
        text = self.content.decode("utf-8-sig")
        buffer = io.StringIO(newline="")
        end = "\r\n" if "\r\n" in text else "\n"
        writer = csv.DictWriter(
            buffer,
            self.columns,
            extrasaction="ignore",
            delimiter=delimiter_of(text),
            lineterminator=end,
        )
        if not text:
            writer.writeheader()
        elif not text.endswith("\n"):
            buffer.write(end)
        writer.writerows(rows)
        try:
            added = buffer.getvalue().encode()
        except UnicodeEncodeError as error:
            name = visible(error.object[max(error.start - 40, 0) : error.end], 80)
            raise UserError(
                f"{self.path.parent}: the file name {name} is no UTF-8 text; rename the picture"
            ) from None
        try:
            with atomic_file(self.path) as file:
                file.write(self.content + added)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}); `train` reads it beside the"
                " pictures, so let their folder be writable"
            ) from None


def read_label_table(folder: Path) -> LabelTable:
    """Return the labels.csv of a folder. Raises UserError for another table in its place."""
    for table in TABLES:
        if table != LABELS_FILE and (folder / table).is_file():
            raise UserError(
                f"{folder}: {table} lists these pictures, and `train` would read it in place of"
                f" {LABELS_FILE}; move it out of the folder"
            )
    path = folder / LABELS_FILE
    if not path.exists():
        return LabelTable(path, b"", list(COLUMNS), frozenset(), 0, 2)
    columns, rows = read_table(path, str(path))
    if "file_name" not in columns or "label" not in columns:
        raise UserError(
            f"{path}: it has no columns file_name and label, so it is another table; move it out of"
            " the folder"
        )
    entries = list(rows)
    listed = frozenset(os.path.normpath(str(row.get("file_name") or "")) for _, row in entries)
    unlabelled = sum(not str(row.get("label") or "").strip() for _, row in entries)
    last_line = entries[-1][0] if entries else 1
    with path.open("rb") as file:
        content = file.read(MAX_TABLE_BYTES)
    return LabelTable(path, content, columns, listed, unlabelled, last_line + 1)
