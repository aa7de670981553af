"""Several labels a picture, from lists in parquet and saved data sets, tables and JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.label_sets import COLOURS, colour_picture, colour_sets

from hf_cifar.data.label_sets import split_sets
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe

SETS = colour_sets(30)


def pictures() -> list[PIL.Image.Image]:
    random = np.random.default_rng(2)
    return [colour_picture(labels, random) for labels in SETS]


def encoded(picture: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write_files(folder: Path) -> list[str]:
    folder.mkdir()
    names = [f"{number:03d}.png" for number in range(len(SETS))]
    for name, picture in zip(names, pictures(), strict=True):
        picture.save(folder / name)
    return names


def write_json_lines(folder: Path) -> dict[str, Any]:
    rows = [
        json.dumps({"file_name": name, "labels": labels})
        for name, labels in zip(write_files(folder), SETS, strict=True)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return {}


def write_mark_columns(folder: Path) -> dict[str, Any]:
    rows = [
        ",".join([name, *("1" if colour in labels else "0" for colour in COLOURS), "x"])
        for name, labels in zip(write_files(folder), SETS, strict=True)
    ]
    header = ",".join(["file_name", *COLOURS, "remark"])
    (folder / "metadata.csv").write_text("\n".join([header, *rows]))
    return {"label_column_name": "red, green,blue"}


def feature(item: Any) -> datasets.Features:
    return datasets.Features({"image": datasets.Image(), "labels": datasets.Sequence(item)})


def data_set(item: Any) -> datasets.Dataset:
    rows = {"image": pictures(), "labels": SETS}
    return datasets.Dataset.from_dict(rows, features=feature(item))


def write_saved(folder: Path) -> dict[str, Any]:
    data_set(datasets.ClassLabel(names=["red", "blue", "green"])).save_to_disk(str(folder))
    return {}


def write_parquet_of_classes(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    names = datasets.ClassLabel(names=["red", "blue", "green"])
    data_set(names).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    return {}


def write_parquet_of_texts(folder: Path) -> dict[str, Any]:
    """Files that `datasets` did not write, with another column that could be a label."""
    folder.mkdir()
    table = pa.table(
        {
            "image": [{"bytes": encoded(picture), "path": None} for picture in pictures()],
            "tags": SETS,
            "note": ["a"] * len(SETS),
        }
    )
    pq.write_table(table, folder / "train.parquet")
    return {}


@pytest.mark.parametrize(
    "write",
    [
        write_json_lines,
        write_mark_columns,
        write_saved,
        write_parquet_of_classes,
        write_parquet_of_texts,
    ],
)
def test_each_picture_has_its_labels(
    tmp_path: Path, write: Callable[[Path], dict[str, Any]]
) -> None:
    keys = write(tmp_path / "data")
    recipe = Recipe(dataset_name=str(tmp_path / "data"), objective="multi_label", **keys)
    data = load_data(recipe)
    names, members = split_sets(data.label_names)
    assert names == COLOURS
    assert data.test is not None and data.validation is not None
    counted = 0
    for split in (data.train, data.validation, data.test):
        for row, label in zip(split.rows, split.labels, strict=True):
            pixels = split.images.picture(int(row))
            shine = {name: pixels[..., "rgb".index(name[0])].min() >= 150 for name in names}
            assert dict(zip(names, members[label], strict=True)) == shine
            counted += 1
    assert counted == len(SETS)


def test_lists_need_the_objective(tmp_path: Path) -> None:
    for write in (write_saved, write_parquet_of_classes):
        folder = tmp_path / write.__name__
        write(folder)
        with pytest.raises(UserError, match=r"holds a list of labels .*`objective: multi_label`"):
            load_data(Recipe(dataset_name=str(folder), label_column_name="labels"))
    write_json_lines(tmp_path / "lines")
    with pytest.raises(UserError, match="got a list; set `objective: multi_label` for several"):
        load_data(Recipe(dataset_name=str(tmp_path / "lines")))


def test_marks_that_are_neither_0_nor_1_are_refused(tmp_path: Path) -> None:
    keys = write_mark_columns(tmp_path / "data")
    table = tmp_path / "data" / "metadata.csv"
    lines = table.read_text().splitlines()
    lines[4] = lines[4].replace(",0", ",2").replace(",1", ",2")
    table.write_text("\n".join(lines))
    recipe = Recipe(dataset_name=str(tmp_path / "data"), objective="multi_label", **keys)
    with pytest.raises(UserError, match="line 5: red must be 0 or 1"):
        load_data(recipe)
    recipe.label_column_name = "red,purple"
    with pytest.raises(UserError, match="red,purple, but the columns are file_name, blue"):
        load_data(recipe)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0], None], "row 1 has no list of labels"),
        ([[0], [3]], r"row 1 has label 3, outside 0\.\.2"),
        ([[0], [-1]], r"row 1 has label -1, outside 0\.\.2"),
        ([[0], [None]], "row 1 has label None"),
    ],
)
def test_lists_with_something_wrong_name_the_row(
    tmp_path: Path, labels: list[Any], message: str
) -> None:
    image = {"bytes": encoded(PIL.Image.new("RGB", (8, 8))), "path": None}
    schema = feature(datasets.ClassLabel(names=COLOURS)).arrow_schema
    table = pa.table({"image": [image, image], "labels": labels}).cast(schema)
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=message) as error:
        load_data(Recipe(dataset_name=str(tmp_path), objective="multi_label"))
    assert "\n" not in str(error.value)
