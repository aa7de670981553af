"""Pictures in one folder, or one a split, with a table beside them that says which class each is:
metadata.csv, metadata.jsonl or metadata.parquet, as `datasets` reads them, or labels.csv.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.data.decode import reason
from hf_cifar.data.label_sets import join_labels
from hf_cifar.data.regular_files import read_regular_file
from hf_cifar.data.sources.arrow_images import readable
from hf_cifar.data.sources.base import SPLITS, Source, file_state, read_card
from hf_cifar.data.sources.columns import LABEL_COLUMNS
from hf_cifar.data.sources.folders import FileImages, pictures_below, split_folders
from hf_cifar.errors import UserError
from hf_cifar.files import json_digest
from hf_cifar.text import visible

LABELS_FILE = "labels.csv"  # also written by `hf-cifar label`; a person fills in its labels
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", LABELS_FILE)
FILE_COLUMNS = ("file_name", "filename", "file", "image", "path")
CLASS_COLUMNS = (*LABEL_COLUMNS, "class", "category")
MAX_TABLE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Entry:
    """One row of a table. file: the picture's path from the data set's root. label: None where a
    person has yet to fill it in. line: in the table, from 1. row: all its columns.
    """

    file: str
    label: str | int | None
    line: int
    row: dict[str, Any]


def find(
    root: Path, name: str, label_column: str | None, several_labels: bool = False
) -> Source | None:
    """Return the data set whose pictures are listed in tables, or None if there is no such table.

    A table in `root` lists all pictures, and the folder of a picture says its split; otherwise each
    split's folder has a table of its own. A table that names no picture of the folder is passed
    over if there are class folders. Rows of a labels.csv without a label are left out.
    label_column: None for the usual names, or the only column beside the files. several_labels:
    whether a row may hold a list of labels, or `label_column` name one column of 0 and 1 for each
    label, with commas between them. Raises UserError for a table with something wrong.
    """
    folders = {"train": ""} if _table(root, "") else split_folders(root, name)
    tables = {split: _table(root, folder) for split, folder in folders.items()}
    present = [table for table in tables.values() if table]
    if not present:
        return None
    entries: dict[str, list[_Entry]] = {}
    for split, table in tables.items():
        if table is None:
            raise UserError(
                f"{name}: folder {folders[split]} has no {Path(present[0]).name}, which the other"
                " splits have; add it"
            )
        rows = _entries(root, table, label_column, several_labels, f"{name}: {table}")
        if rows is None:
            return None
        for entry in rows:
            by_folder = SPLITS.get(entry.file.split(os.sep)[0].lower(), "train")
            entries.setdefault(split if folders[split] else by_folder, []).append(entry)
    listed = {entry.file for rows in entries.values() for entry in rows}
    sizes = {
        file: state for folder in folders.values() for file, state in pictures_below(root, folder)
    }
    unlabelled = sum(entry.label is None for rows in entries.values() for entry in rows)
    if unlabelled == len(listed):
        raise UserError(f"{name}: {present[0]}: no picture has a label yet; fill some in")
    entries = {
        split: labelled
        for split, rows in entries.items()
        if (labelled := [entry for entry in rows if entry.label is not None])
    }
    names = _class_names([str(entry.label) for rows in entries.values() for entry in rows])
    numbers = {class_name: number for number, class_name in enumerate(names)}

    def open_split(split: str, _: Path) -> FileImages:
        labels = np.array([numbers[str(entry.label)] for entry in entries[split]], dtype=np.int64)
        return FileImages(root, files(split), labels, names)

    def files(split: str) -> list[str]:
        return [entry.file for entry in entries[split]]

    def column(split: str, key: str) -> list[Any]:
        columns = dict.fromkeys(key for entry in entries[split] for key in entry.row)
        if key not in columns:
            listed = visible(", ".join(map(str, columns)), 200)
            raise UserError(f"{name}: {present[0]} has no column {key}, only {listed}")
        return [entry.row.get(key) for entry in entries[split]]

    messages: tuple[str, ...] = ()
    if unlisted := len(sizes.keys() - listed):
        messages = (f"{name}: {unlisted:,} pictures are not listed in {present[0]} and left out",)
    if unlabelled:
        messages += (f"{name}: {unlabelled:,} rows of {present[0]} have no label and are left out",)
    state = [[file_state(root / table) for table in present], sorted(sizes.items()), label_column]
    splits = tuple(split for split in ("train", "validation", "test") if split in entries)
    identity = f"listed {root.resolve()} {label_column}"
    license = read_card(root)[0]
    return Source(
        name,
        license,
        splits,
        identity,
        json_digest(state),
        open_split,
        messages,
        files=files,
        column=column,
    )


def _table(root: Path, folder: str) -> str | None:
    """Return the path from `root` of the table in `root/folder`, or None."""
    paths = (os.path.join(folder, table) for table in TABLES)
    return next((path for path in paths if (root / path).is_file()), None)


def _has_classes(root: Path, folder: str) -> bool:
    """Return whether a folder holds class folders: two with pictures, and none beside them."""
    folders = {os.path.dirname(file) for file, _ in pictures_below(root, folder)}
    return folder not in folders and len(folders) > 1


def _entries(
    root: Path, table: str, label_column: str | None, several_labels: bool, where: str
) -> list[_Entry] | None:
    """Return the rows of a table, or None if it lists no pictures. Raises UserError."""
    header, rows = read_table(root / table, where)
    columns = visible(", ".join(map(str, header)), 200)
    folder = os.path.dirname(table)
    file_column = next((column for column in FILE_COLUMNS if column in header), None)
    others = [column for column in header if column != file_column]
    usual = [column for column in CLASS_COLUMNS if column in others]
    if (file_column is None or not (label_column or usual)) and _has_classes(root, folder):
        return None
    if file_column is None:
        raise UserError(
            f"{where}: there is no column file_name, only {columns}; rename the column that names"
            " the pictures"
        )
    if label_column is None and len(usual or others) != 1:
        raise UserError(
            f"{where}: set label_column_name to the column with the classes; the columns are"
            f" {columns}"
        )
    label = label_column or (usual or others)[0]
    marks = [label]  # columns of 0 and 1
    if several_labels and label not in others:
        marks = [column.strip() for column in label.split(",")]
    for column in marks:
        if column not in others:
            raise UserError(f"{where}: label_column_name is {label}, but the columns are {columns}")
    fillable = os.path.basename(table) == LABELS_FILE
    entries, seen = [], dict[str, int]()
    for line, row in rows:
        file = row.get(file_column)
        if not isinstance(file, str) or not file:
            raise UserError(f"{where}, line {line}: {file_column} is empty; name a picture")
        path, file = os.path.normpath(os.path.join(folder, file)), visible(file, 80)
        if os.path.isabs(path) or path.startswith("..") or "\0" in path:
            raise UserError(
                f"{where}, line {line}: {file} leads out of the data set's folder; move the picture"
            )
        if not (root / path).is_file():
            raise UserError(f"{where}, line {line}: there is no picture {file}; correct the line")
        if path in seen:
            raise UserError(
                f"{where}, line {line}: {file} stands in line {seen[path]} already; keep one"
            )
        value = _label(row, marks, several_labels, fillable, f"{where}, line {line}")
        seen[path] = line
        entries.append(_Entry(path, value, line, row))
    if not entries:
        raise UserError(f"{where} has no rows; list the pictures")
    return entries


def _label(
    row: dict[str, Any], columns: list[str], several_labels: bool, fillable: bool, where: str
) -> str | int | None:
    """Return the label of a row, or None where a person has yet to fill it in. Raises UserError.

    columns: the one that holds the label, or one of 0 and 1 for each label. several_labels: whether
    it may be a list. fillable: whether it may be empty. where: the line, for messages.
    """
    value = row.get(columns[0])
    if len(columns) > 1:
        return join_labels([name for name in columns if _is_marked(row, name, where)], where)
    if several_labels and isinstance(value, list):
        return join_labels(value, where)
    if fillable and not str(value or "").strip():
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        remedy = "; set `objective: multi_label` for several" if isinstance(value, list) else ""
        raise UserError(
            f"{where}: {columns[0]} must be one text or integer, got {_shown(value)}{remedy}"
        )
    return value


def _is_marked(row: dict[str, Any], column: str, where: str) -> bool:
    """Return whether a column says that the picture has its label. Raises UserError."""
    mark = str(row.get(column)).strip().lower()
    if mark not in ("0", "1", "false", "true"):
        raise UserError(
            f"{where}: {column} must be 0 or 1, since label_column_name lists it among others, got"
            f" {visible(mark, 40)}"
        )
    return mark in ("1", "true")


def _shown(value: Any) -> str:
    return "nothing" if value in (None, "") else f"a {type(value).__name__}"


def read_table(path: Path, where: str) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """Return the columns of a table, and its rows with their numbers. Raises UserError."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with readable(path):
            content = pq.read_table(path)
        return content.column_names, enumerate(content.to_pylist(), 1)
    try:
        text = read_regular_file(path, MAX_TABLE_BYTES).decode("utf-8-sig")
        if path.suffix == ".jsonl":
            rows = [
                (line, json.loads(row))
                for line, row in enumerate(text.splitlines(), 1)
                if row.strip()
            ]
            if not all(isinstance(row, dict) for _, row in rows):
                raise ValueError("a line is not an object")
            return list(dict.fromkeys(column for _, row in rows for column in row)), iter(rows)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter_of(text))
        columns = list(reader.fieldnames or [])
        return columns, iter([(reader.line_num, row) for row in reader])
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{where} cannot be read ({reason(error)}); correct it") from None


def delimiter_of(text: str) -> str:
    """Return what separates the columns of a csv table, by its first line."""
    header = text.split("\n", 1)[0]
    return max(",;\t", key=header.count)


def _class_names(labels: list[str]) -> list[str]:
    """Return the classes, sorted: as numbers if all of them are, else as texts."""
    names = set(labels)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
