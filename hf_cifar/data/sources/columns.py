"""Which columns of a table hold the pictures and the labels, and what the classes are called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from hf_cifar.data.label_sets import join_labels
from hf_cifar.errors import UserError

MAX_CLASSES = 65_536
IMAGE_COLUMNS = ("image", "img")  # the usual names
LABEL_COLUMNS = ("label", "labels")


@dataclass(frozen=True)
class Columns:
    """The columns that the recipe names; None: found by type.

    several_labels: whether a row may hold a list of labels.
    """

    image: str | None = None
    label: str | None = None
    several_labels: bool = field(default=False, repr=False)  # the pictures stay the same


class ChosenColumns(NamedTuple):
    """The columns of a table.

    names: the classes; None: the values say them. items: what the numbers in lists of labels stand
    for; None: the values are the labels.
    """

    image: str
    label: str
    names: list[str] | None
    items: list[str] | None = None


def features_of(schema: Any) -> dict[str, Any]:
    """Return the features that `datasets` wrote into a schema's metadata, as `Features.to_dict` has
    them, or {}.
    """
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (TypeError, KeyError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def choose_columns(
    schema: Any, features: dict[str, Any], wanted: Columns, name: str
) -> ChosenColumns:
    """Return the image column, the label column and its class names.

    A column is chosen by its feature type (`datasets.Image`, `ClassLabel`); in files that
    `datasets` did not write, by its Arrow type. Of several, the one with a usual name is meant;
    else the recipe has to say. name: the data set's, for messages. Raises UserError.
    """
    kinds = {
        key: feature.get("_type") for key, feature in features.items() if isinstance(feature, dict)
    }
    types = {field.name: field.type for field in schema}
    listed = ", ".join(f"{key} ({kinds.get(key) or types[key]})" for key in types)

    def choose(
        key: str,
        asked: str | None,
        candidates: list[str],
        usual: tuple[str, ...],
        fits: Callable[[Any], bool],
    ) -> str:
        if asked is not None and asked not in types:
            raise UserError(f"{name}: {key} is {asked}, but the columns are {listed}")
        if asked is None:
            if len(candidates) > 1:
                candidates = [column for column in candidates if column in usual] or candidates
            if len(candidates) != 1:
                raise UserError(
                    f"{name}: set {key}, since {len(candidates)} columns could be meant; the"
                    f" columns are {listed}"
                )
        column = candidates[0] if asked is None else asked
        if not fits(types[column]):
            expected = "pictures" if fits is _is_image else "one integer or text in each row"
            if _is_list(types[column]) and fits is not _is_image:
                raise UserError(
                    f"{name}: {key} is {column}, which holds a list of labels in each row; set"
                    " `objective: multi_label`, or name a column with one label"
                )
            raise UserError(
                f"{name}: {key} is {column}, which is of another type than {expected}; the columns"
                f" are {listed}"
            )
        return column

    def of(kind: str, like: Callable[[Any], bool]) -> list[str]:
        typed = [column for column in types if kinds.get(column) == kind]
        return typed or [column for column, type_ in types.items() if like(type_)]

    image = choose(
        "image_column_name", wanted.image, of("Image", _is_image), IMAGE_COLUMNS, _is_image
    )

    def is_label(type_: Any) -> bool:
        return _is_number(type_) or is_text(type_) or (wanted.several_labels and _is_list(type_))

    labels = of("ClassLabel", _is_number) or of("ClassLabel", is_text)
    lists = [column for column, type_ in types.items() if _is_list(type_)]
    if wanted.several_labels or not labels:
        labels = lists or labels
    label = choose("label_column_name", wanted.label, labels, LABEL_COLUMNS, is_label)
    where, feature = f"{name}: column {label}", features.get(label) or {}
    if _is_list(types[label]):
        item = feature.get("feature") or {}
        items = item.get("names") if isinstance(item, dict) else None
        return ChosenColumns(image, label, None, _declared_names(items, where))
    if kinds.get(label) != "ClassLabel":
        return ChosenColumns(image, label, None)
    return ChosenColumns(image, label, _declared_names(feature.get("names"), where))


def _declared_names(names: Any, where: str) -> list[str] | None:
    """Return the class names of a ClassLabel feature: a list, or a mapping from numbers as in a
    card. Raises UserError for anything else.
    """
    if isinstance(names, dict):
        by_number = {str(key): value for key, value in names.items()}
        names = [by_number.get(str(label)) for label in range(len(by_number))]
    if not names:
        return None
    fits = isinstance(names, list) and len(names) <= MAX_CLASSES
    if not fits or not all(isinstance(name, str | int | float) for name in names):
        raise UserError(f"{where}: its class names are not a list of texts; correct the metadata")
    return [str(name) for name in names]


def _is_image(type_: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(type_):
        fields = {type_.field(i).name: type_.field(i).type for i in range(type_.num_fields)}
        if not fields.keys() >= {"bytes", "path"}:
            return False
        type_ = fields["bytes"]
    return types.is_binary(type_) or types.is_large_binary(type_)


def _is_number(type_: Any) -> bool:
    import pyarrow.types as types

    return types.is_integer(type_) or types.is_boolean(type_)


def _is_list(type_: Any) -> bool:
    import pyarrow.types as types

    lists = types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_)
    return lists and (_is_number(type_.value_type) or is_text(type_.value_type))


def joined_lists(column: Any, items: list[str] | None, where: str) -> Any:
    """Return a column of lists of labels as texts such as `cat|dog`; another column as it is.

    items: names of the labels that the lists hold as numbers; None: they hold the labels. where:
    the data set and split, for messages. Raises UserError for a row without a list, and a label
    that is no text, no whole number or out of range.
    """
    import pyarrow as pa

    if not _is_list(column.type):
        return column
    texts = []
    for row, labels in enumerate(column.to_pylist()):
        place = f"{where}: row {row}"
        if labels is None:
            raise UserError(f"{place} has no list of labels; give it one, which may be empty")
        if items is not None:
            if wrong := [label for label in labels if label is None or not 0 <= label < len(items)]:
                raise UserError(
                    f"{place} has label {wrong[0]}, outside 0..{len(items) - 1}; correct the labels"
                    " or the label names"
                )
            labels = [items[label] for label in labels]
        texts.append(join_labels(labels, place))
    return pa.chunked_array([pa.array(texts, pa.string())])


def is_text(type_: Any) -> bool:
    """Return whether an Arrow type is text."""
    import pyarrow.types as types

    return types.is_string(type_) or types.is_large_string(type_)


def class_names(columns: Iterable[Any]) -> list[str]:
    """Return the classes of the label columns of all splits: their sorted texts, or "0" to the
    largest integer. Raises UserError for more than `MAX_CLASSES`.
    """
    import pyarrow.compute as pc

    names: set[str] = set()
    highest = -1
    for column in columns:
        if is_text(column.type):
            names.update(value for value in pc.unique(column).to_pylist() if value is not None)
        else:
            highest = max(highest, int(pc.max(column).as_py() or 0))
    if highest >= MAX_CLASSES:
        raise UserError(
            f"a label is {highest}, more than {MAX_CLASSES:,} classes; is this column a label at"
            " all?"
        )
    return sorted(names) or [str(label) for label in range(highest + 1)]


def picture_paths(images: Any) -> list[str | None]:
    """Return the path that each row of an image column names, or None where it names none."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    if not types.is_struct(images.type) or images.type.get_field_index("path") < 0:
        return [None] * len(images)
    return pc.struct_field(images, "path").to_pylist()


def label_array(column: Any, names: list[str], where: str) -> np.ndarray:
    """Return int64 [N] from integers, booleans or the classes' names.

    where: the data set and split, for messages. Raises UserError that names a row without a label.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if is_text(column.type):
        column = pc.index_in(column, pa.array(names, column.type))
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise UserError(
            f"{where}: row {row} has no label, or one that is no class; correct or remove it"
        )
    try:
        return column.cast(pa.int64()).to_numpy().astype(np.int64)
    except pa.ArrowInvalid:
        label = pc.max(column).as_py()
        raise UserError(
            f"{where}: row {pc.index(column, label).as_py()} has label {label}, outside"
            f" 0..{len(names) - 1}; correct the labels or the label names"
        ) from None
