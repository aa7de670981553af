"""Pictures listed in a table beside them, as `datasets` and people have them."""

import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.pictures import class_folders, loaded, noise

from hf_cifar.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


ROWS = [("b.png", "cat"), ("a.png", "dog"), ("c.png", "cat"), ("deep/d.png", "dog")]


def pictures(folder, names=tuple(name for name, _ in ROWS)):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(noise(number)).save(folder / name)
    return folder


def table(path, rows=ROWS, columns=("file_name", "label"), delimiter=","):
    if path.suffix == ".csv":
        lines = [delimiter.join(map(str, row)) for row in (columns, *rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        objects = (dict(zip(columns, row, strict=True)) for row in rows)
        path.write_text("".join(json.dumps(o) + "\n" for o in objects))
    else:
        pq.write_table(pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True))), path)


TABLES = ["metadata.csv", "metadata.jsonl", "metadata.parquet", "labels.csv"]


@pytest.mark.parametrize("name", TABLES)
def test_one_folder_with_a_table(tmp_path, name):
    root = pictures(tmp_path / "data")
    table(root / name)
    data = loaded(root)
    assert data.label_names == ["cat", "dog"] and data.train.labels.tolist() == [0, 1, 0, 1]
    for number in range(4):  # in the order of the table
        assert np.array_equal(data.train.images.picture(number), noise(number))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_in_each_split_and_one_for_all(tmp_path, name):
    for split in ("train", "test"):
        pictures(tmp_path / "each" / split)
        table(tmp_path / "each" / split / name)
    every = [(f"{split}/{file}", label) for split in ("train", "test") for file, label in ROWS]
    pictures(tmp_path / "all", [file for file, _ in every])
    table(tmp_path / "all" / name, every)
    for folder in ("each", "all"):
        data = loaded(tmp_path / folder)
        assert [len(data.train), len(data.test)] == [4, 4]
        assert data.test.labels.tolist() == [0, 1, 0, 1]


def test_what_datasets_reads_is_what_is_read_here(tmp_path):
    import datasets

    root = pictures(tmp_path / "data")
    table(root / "metadata.csv")
    theirs = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=tmp_path / "hf")
    images = loaded(root).train.images
    ours = {
        images.picture(row).tobytes(): images.label_names[label]
        for row, label in enumerate(images.labels)
    }
    assert ours == {np.asarray(r["image"]).tobytes(): r["label"] for r in theirs["train"]}


def test_columns_are_found_or_named(tmp_path):
    root = pictures(tmp_path / "data")
    rows = [(label, f"note {i}", file) for i, (file, label) in enumerate(ROWS)]
    table(root / "metadata.csv", rows, ("species", "note", "file_name"))
    with pytest.raises(UserError, match=r"metadata\.csv: set label_column_name .* species, note"):
        loaded(root)
    assert loaded(root, label_column_name="species").label_names == ["cat", "dog"]
    assert len(loaded(root, label_column_name="note").label_names) == 4
    with pytest.raises(UserError, match="label_column_name is kind, but the columns are"):
        loaded(root, label_column_name="kind")
    table(root / "metadata.csv", rows, ("category", "note", "filename"))
    assert loaded(root).label_names == ["cat", "dog"]
    table(root / "metadata.csv", ROWS, ("image", "species"))  # the only other column
    assert loaded(root).label_names == ["cat", "dog"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_of_other_countries_with_quotes_and_a_byte_order_mark(tmp_path, delimiter):
    root = pictures(tmp_path / "data")
    table(root / "labels.csv", [(f, f'"{name}, big"') for f, name in ROWS], delimiter=delimiter)
    content = (root / "labels.csv").read_text().replace("\n", "\r\n")
    (root / "labels.csv").write_text(content, encoding="utf-8-sig", newline="")
    assert loaded(root).label_names == ["cat, big", "dog, big"]


def test_numbers_sort_as_numbers(tmp_path):
    root = pictures(tmp_path / "data")
    for name, values in (("metadata.csv", "10 9 10 2"), ("metadata.jsonl", "10 9 10 2")):
        (root / "metadata.csv").unlink(missing_ok=True)
        labels = [int(value) for value in values.split()]
        table(root / name, [(f, label) for (f, _), label in zip(ROWS, labels, strict=True)])
        data = loaded(root)
        assert data.label_names == ["2", "9", "10"] and data.train.labels.tolist() == [2, 1, 2, 0]


def test_pictures_that_are_not_listed_are_left_out_and_counted(tmp_path):
    root = pictures(tmp_path / "data")
    table(root / "metadata.csv", ROWS[:2])
    data = loaded(root)
    assert len(data.train) == 2
    assert "data: 2 pictures are not listed in metadata.csv and left out" in data.messages


def test_a_changed_table_or_picture_is_noticed(tmp_path):
    root = pictures(tmp_path / "data")
    table(root / "metadata.csv")
    before = loaded(root)
    table(root / "metadata.csv", [*ROWS[:3], ("deep/d.png", "cat")])
    after = loaded(root)
    assert after.train.labels.tolist() == [0, 1, 0, 0] and after.fingerprint != before.fingerprint
    PIL.Image.new("RGB", (8, 6)).save(root / "a.png")
    assert loaded(root).fingerprint != after.fingerprint


def test_class_folders_stay_class_folders_beside_another_table(tmp_path):
    root = class_folders(tmp_path / "data")
    for name, columns in (
        ("labels.csv", ("number", "name")),  # a list of classes
        ("metadata.csv", ("file_name", "width")),
    ):
        table(root / name, [("cat/0.png", 8), ("dog/0.png", 8)], columns)
        assert loaded(root).label_names == ["cat", "dog"] and len(loaded(root).train) == 12
    table(root / "metadata.csv", [("cat/0.png", "x"), ("dog/0.png", "y")])
    assert loaded(root).label_names == ["x", "y"]  # labels of the user's own come first


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("nowhere.png", "cat")], r"metadata\.csv, line 2: there is no picture nowhere\.png"),
        ([("a.png", "")], "line 2: label must be one text or integer, got nothing"),
        ([("", "cat")], "line 2: file_name is empty"),
        ([("a.png", "x"), ("./a.png", "y")], r"line 3: \./a\.png stands in line 2 already"),
        ([], "has no rows"),
    ],
)
def test_rows_with_something_wrong(tmp_path, rows, message):
    root = pictures(tmp_path / "data")
    table(root / "metadata.csv", rows)
    with pytest.raises(UserError, match=message) as error:
        loaded(root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", ["[1, 2]", "1.5", "true", "null", '{"a": 1}'])
def test_labels_of_jsonl_that_are_no_class(tmp_path, label):
    root = pictures(tmp_path / "data")
    (root / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "label": {label}}}\n')
    with pytest.raises(UserError, match="line 1: label must be one text or integer"):
        loaded(root)


def test_a_split_without_a_table(tmp_path):
    for split in ("train", "test"):
        pictures(tmp_path / split)
    table(tmp_path / "train" / "metadata.csv")
    with pytest.raises(UserError, match=r"folder test has no metadata\.csv"):
        loaded(tmp_path)


def test_no_column_with_files(tmp_path):
    root = pictures(tmp_path / "data")
    table(root / "metadata.csv", columns=("name", "label"))
    with pytest.raises(UserError, match="there is no column file_name, only name, label"):
        loaded(root)
