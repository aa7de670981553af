"""Parquet and Arrow files that mean harm: paths, sizes, labels, features."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.pictures import encoded, loaded, noise

from hf_cifar.data.hub_layout import write_parquet
from hf_cifar.errors import UserError

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


def one_line(folder, **keys):
    """Return the one line that loading ends with, which takes less than ten seconds."""
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        loaded(folder, **keys)
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


def write(folder, labels, pictures=None, features=None, name="train-0.parquet", **options):
    """Write a parquet file with the columns img and label."""
    folder.mkdir(exist_ok=True)
    if pictures is None:
        pictures = [{"bytes": encoded(noise(i)), "path": None} for i in range(len(labels))]
    columns = {"img": pa.array(pictures, PICTURE), "label": labels}
    table = pa.table(columns)
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, folder / name, **options)
    return folder


# ---- paths ----


@pytest.fixture
def private(tmp_path):
    """A picture beside the data set, and the data set's folder."""
    PIL.Image.fromarray(noise(7)).save(tmp_path / "private.png")
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    PIL.Image.fromarray(noise(8)).save(folder / "inner" / "own.png")
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    return folder


@pytest.mark.parametrize(
    "path",
    [
        "{}/private.png",
        "../private.png",
        "inner/../../private.png",
        "link.png",
        "/dev/zero",
        "inner/own.png\0",
    ],
)
def test_a_path_out_of_the_folder_is_not_read(private, path):
    path = path.format(private.parent)
    rows = [{"bytes": encoded(noise(0)), "path": None}, {"bytes": None, "path": path}]
    write(private, [0, 1], rows)
    message = one_line(private)
    assert "its path leads out of the data set's folder" in message and "row 1" in message
    data = loaded(private, on_bad_image="skip")
    assert len(data.train.images.bad) == 1


def test_a_path_inside_the_folder_is_read(private):
    rows = [{"bytes": None, "path": "inner/own.png"}, {"bytes": encoded(noise(0)), "path": None}]
    write(private, [0, 1], rows)
    assert np.array_equal(loaded(private).train.images.picture(0), noise(8))


def saved(folder, rows, labels, features=None):
    """Write a folder as `save_to_disk` does."""
    folder.mkdir(exist_ok=True)
    schema = pa.schema([("img", PICTURE), ("label", pa.int64())])
    table = pa.table({"img": pa.array(rows, PICTURE), "label": labels}, schema=schema)
    with pa.ipc.new_stream(folder / "data.arrow", schema) as writer:
        writer.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    return folder


def test_a_saved_data_set_reads_no_file_outside_either(private):
    rows = [{"bytes": encoded(noise(0)), "path": None}, {"bytes": None, "path": "../private.png"}]
    saved(private, rows, [0, 1])
    assert "its path leads out" in one_line(private)


@pytest.mark.parametrize("name", ["../other.arrow", "{}/other.arrow"])
def test_a_saved_data_set_whose_files_lie_elsewhere(private, name):
    saved(private, [{"bytes": encoded(noise(0)), "path": None}], [0])
    shutil.copy(private / "data.arrow", private.parent / "other.arrow")
    state = {"_data_files": [{"filename": name.format(private.parent)}]}
    (private / "state.json").write_text(json.dumps(state))
    assert "its path leads out of the data set's folder" in one_line(private)


@pytest.mark.parametrize(
    "state",
    [
        "",
        "[]",
        "{}",
        '{"_data_files": 3}',
        '{"_data_files": [{}]}',
        "[" * 100_000,
        '{"_data_files": [{"filename": 3}]}',
        '{"_data_files": []}',
    ],
)
def test_a_state_with_something_wrong(tmp_path, state):
    folder = saved(tmp_path / "data", [{"bytes": encoded(noise(0)), "path": None}], [0])
    (folder / "state.json").write_text(state)
    assert "save the data set again" in one_line(folder) or "has no rows" in one_line(folder)


def test_offsets_that_point_anywhere(tmp_path):
    """Arrow files hold offsets that nothing checks unless it is asked for."""
    rows = [{"bytes": encoded(noise(i)), "path": None} for i in range(4)]
    folder = saved(tmp_path / "data", rows, [0, 1, 0, 1])
    content = (folder / "data.arrow").read_bytes()
    sizes = np.cumsum([0] + [len(row["bytes"]) for row in rows]).astype("<i4").tobytes()
    assert content.count(sizes) == 1
    wrong = np.array([0, 2**30, 2**31 - 1, 5, 2**30], "<i4").tobytes()
    (folder / "data.arrow").write_bytes(content.replace(sizes, wrong))
    assert "data/data.arrow cannot be read" in one_line(folder)


# ---- sizes ----

PEAK = """
import sys
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe
try:
    load_data(Recipe(dataset_name=sys.argv[1]))
except UserError as error:
    print([line.split()[1] for line in open("/proc/self/status") if line[:5] == "VmHWM"][0])
    print(error)
"""


def peak(folder):
    """Return the memory in GB that loading takes in a process of its own, and its one line."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    kilobytes, message = done.stdout.splitlines()
    return int(kilobytes) / 1e6, message


@pytest.mark.slow
def test_a_picture_of_half_a_gigabyte(tmp_path):
    rows = [{"bytes": bytes(500_000_000), "path": None}, {"bytes": encoded(noise(0)), "path": None}]
    options = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}
    write(tmp_path / "data", [0, 1], rows, **options)
    assert (tmp_path / "data" / "train-0.parquet").stat().st_size < 5e6
    gigabytes, message = peak(tmp_path / "data")
    assert "a picture has 500 MB, more than the 403 MB that are read" in message
    assert gigabytes < 2.5


def test_a_picture_that_a_dictionary_repeats_a_thousand_times(tmp_path):
    """A few kB of file are 50 GB of rows."""
    picture = pa.array([bytes(50_000_000)], pa.binary())
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), picture)
    paths = pa.array([None] * 1000, pa.string())
    rows = pa.StructArray.from_arrays([repeated, paths], ["bytes", "path"])
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(
        pa.table({"img": rows, "label": [0, 1] * 500}),
        folder / "train-0.parquet",
        compression="zstd",
        dictionary_pagesize_limit=2**30,
        store_schema=False,  # the file says binary, not dictionary
    )
    gigabytes, message = peak(folder)
    assert "it expands to over 0.5 GB" in message and gigabytes < 2.5
    left = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*"))
    assert left < 1e6


def test_a_billion_rows_without_pictures(tmp_path):
    """Equal values are stored as a run, whatever their number."""
    folder = tmp_path / "data"
    folder.mkdir()
    schema = pa.schema([("img", PICTURE), ("label", pa.int64())])
    nothing = pa.array([None] * 1_000_000, PICTURE)
    zeros = pa.array(np.zeros(1_000_000, np.int64))
    with pq.ParquetWriter(folder / "train-0.parquet", schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(pa.table([nothing, zeros], schema=schema))
    gigabytes, message = peak(folder)
    assert "it claims to have 20,000,000 rows, more than it has bytes" in message
    assert gigabytes < 1


def test_a_pipe_and_a_device_named_parquet(tmp_path):
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "train.parquet")
    assert "train.parquet is not a regular file" in one_line(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.parquet").symlink_to("/dev/zero")
    assert "train.parquet is not a regular file" in one_line(tmp_path / "b")


# ---- labels and features ----


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([0, 2**64 - 1, 1], pa.uint64()),
        pa.array([0, 2**63, 1], pa.uint64()),
        pa.array([0, 2**63 - 1, 1], pa.int64()),
        pa.array([0, -(2**63), 1], pa.int64()),
    ],
)
@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
def test_labels_beyond_all_classes(tmp_path, labels, names):
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    folder = write(tmp_path / "data", labels, features=features if names else None)
    message = one_line(folder)
    assert "label" in message and str(labels[1].as_py()) in message


def test_lists_of_labels_need_their_objective(tmp_path):
    labels, need = (
        pa.array([[0], [1, 2], []]),
        "a list of labels in each row; set `objective: multi",
    )
    folder = write(tmp_path / "a", labels)
    assert need in one_line(folder) and need in one_line(folder, label_column_name="label")
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    folder = write(tmp_path / "b", labels, features=features)
    assert need in one_line(folder)
    folder = write(tmp_path / "c", pa.array([[0.5], [1.5, 2.5], []]))
    assert "set label_column_name, since 0 columns could be meant" in one_line(folder)
    message = one_line(folder, label_column_name="label")
    assert "which is of another type than one integer or text in each row" in message


def test_a_column_that_only_claims_to_hold_pictures(tmp_path):
    features = {"label": {"_type": "Image"}}
    folder = write(tmp_path / "data", [0, 1], features=features)
    assert "image_column_name is label, which is of another type than pictures" in one_line(folder)


@pytest.mark.parametrize(
    "features",
    [
        [],
        [{"name": "label"}],
        "text",
        {"img": 3, "label": None},
        {"img": {"_type": []}, "label": {"_type": "ClassLabel"}},
        {"label": {"_type": "ClassLabel", "names": None}},
    ],
)
def test_features_that_say_nothing(tmp_path, features):
    """Then the types of the columns decide."""
    data = loaded(write(tmp_path / "data", [0, 1, 0], features=features))
    assert data.label_names == ["0", "1"]


@pytest.mark.parametrize("names", ["ab", 7, [["a"], ["b"]], {"0": "a", "2": "b"}, [None, "b"]])
def test_class_names_that_are_none(tmp_path, names):
    features = {"label": {"_type": "ClassLabel", "names": names}}
    message = one_line(write(tmp_path / "data", [0, 1], features=features))
    assert "its class names are not a list of texts" in message


def test_metadata_that_is_100000_deep(tmp_path):
    folder = tmp_path / "data"
    write(folder, [0, 1])
    table = pq.read_table(folder / "train-0.parquet")
    deep = table.replace_schema_metadata({"huggingface": "[" * 100_000 + "]" * 100_000})
    pq.write_table(deep, folder / "train-0.parquet")
    assert loaded(folder).label_names == ["0", "1"]


def test_a_missing_label_names_the_data_set_and_not_the_cache(tmp_path):
    folder = write(tmp_path / "pictures", [0, None, 1])
    assert one_line(folder).startswith("pictures, split train: row 1 has no label")


def test_a_second_file_with_other_columns(tmp_path):
    folder = write(tmp_path / "data", [0, 1])
    pq.write_table(pa.table({"img": ["a"]}), folder / "train-1.parquet")
    assert "train-1.parquet has no column label, which train-0.parquet has" in one_line(folder)
    write(folder, ["a", "b"], name="train-1.parquet")
    assert "train-1.parquet cannot be read" in one_line(folder)


# ---- bytes ----


@pytest.mark.slow
def test_files_that_are_changed_at_random(tmp_path):
    """A byte here, a cut there: each is read, or named in one line, and nothing crashes."""
    random = np.random.default_rng(0)
    outcomes = {"read": 0, "named": 0}
    write_parquet(
        tmp_path / "good.parquet", [encoded(noise(i)) for i in range(20)], [0, 1] * 10, ["a", "b"]
    )
    saved(
        tmp_path / "good", [{"bytes": encoded(noise(i)), "path": None} for i in range(9)], [0] * 9
    )
    for i in range(200):
        folder = tmp_path / f"{i}"
        if i % 2:
            path = shutil.copytree(tmp_path / "good", folder) / "data.arrow"
        else:
            folder.mkdir()
            path = shutil.copy(tmp_path / "good.parquet", folder / "train.parquet")
        data = bytearray(path.read_bytes())
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        path.write_bytes(data[: len(data) if i % 3 else random.integers(len(data))])
        try:
            loaded(folder)
            outcomes["read"] += 1
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["named"] += 1
        shutil.rmtree(folder)
    assert min(outcomes.values()) > 5, outcomes
