"""The group of each picture: the patient, cell or vehicle that it shows.

Pictures of one group are alike, so a model that has trained on some of them knows the others, and
its score on them says nothing about the next patient.
"""

from __future__ import annotations

import os
import re

import numpy as np

from hf_cifar.data.sources.base import Source
from hf_cifar.errors import UserError
from hf_cifar.recipe.fields import DataKeys
from hf_cifar.text import visible


def has_groups(keys: DataKeys) -> bool:
    """Return whether the keys of a recipe say how pictures are grouped."""
    return keys.group_column_name is not None or keys.group_pattern is not None


def read_groups(source: Source, split: str, keys: DataKeys) -> np.ndarray:
    """Return the name of the group of each row that a source brings as `split`: str [N].

    keys: `group_column_name`, a column of the source's table, or `group_pattern`, whose first group
    in a picture's path is the name. Raises UserError for a row without a group.
    """
    where = f"{source.name}, split {split}"
    if keys.group_column_name is not None:
        return _from_column(source, split, keys.group_column_name, where)
    assert keys.group_pattern is not None
    return _from_paths(source, split, keys.group_pattern, where)


def _from_column(source: Source, split: str, column: str, where: str) -> np.ndarray:
    if source.column is None:
        raise UserError(
            f"{source.name}: group_column_name is {column}, but this data set has no table with"
            " columns; set group_pattern, or add a metadata.csv"
        )
    values = source.column(split, column)
    for row, value in enumerate(values):
        if not isinstance(value, str | int) or value == "":
            shown = "nothing" if value in (None, "") else f"a {type(value).__name__}"
            raise UserError(
                f"{where}: row {row} has {shown} in group_column_name {column}; a group is a text"
                " or a whole number"
            )
    return np.array([str(value) for value in values])


def _from_paths(source: Source, split: str, pattern: str, where: str) -> np.ndarray:
    paths = source.files(split) if source.files is not None else [None]
    names = []
    for row, path in enumerate(paths):
        if path is None:
            raise UserError(
                f"{where}: row {row} has no file name for group_pattern; set group_column_name to"
                " the column that names the groups"
            )
        path = path.replace(os.sep, "/")
        match = re.search(pattern, path)
        if match is None or not match[1]:
            raise UserError(
                f"{where}: group_pattern {pattern} finds no group in {visible(path, 80)}; correct"
                " the pattern or the name"
            )
        names.append(match[1])
    return np.array(names)
