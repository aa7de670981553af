"""Cuts that keep the pictures of a patient, a cell or a vehicle together."""

import logging

import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from helpers.pictures import loaded, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cifar.cli import main
from hf_cifar.data.splits import TEST_CUT, grouped_cut
from hf_cifar.errors import UserError
from hf_cifar.recipe.load import make_recipe


@st.composite
def grouped_labels(draw):
    """Labels int64 [n] and groups str [n], from few large to many small ones."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, classes = draw(st.integers(2, 150)), draw(st.integers(1, 5))
    groups = random.integers(0, draw(st.integers(2, 60)), images)
    pure = draw(st.booleans())  # a patient has one diagnosis
    labels = groups % classes if pure else random.integers(0, classes, images)
    labels = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return labels, np.char.add("g", groups.astype(str))


@settings(max_examples=60, deadline=None)
@given(grouped_labels(), st.floats(0.02, 0.9), st.integers(0, 2**32), st.randoms())
def test_a_cut_takes_whole_groups_whatever_the_order_of_the_rows(data, fraction, seed, shuffler):
    labels, groups = data
    cut = grouped_cut(labels, groups, fraction, seed, TEST_CUT)
    inside, outside = set(groups[cut]), set(np.delete(groups, cut))
    assert not inside & outside and (np.diff(cut) > 0).all()
    order = list(range(len(labels)))
    shuffler.shuffle(order)
    again = grouped_cut(labels[order], groups[order], fraction, seed, TEST_CUT)
    assert set(groups[order][again]) == inside
    for label in set(labels):
        holders = set(groups[labels == label])
        if len(holders) > 1:
            assert holders & outside  # no class is lost to training
        pure = all(len(set(labels[groups == group])) == 1 for group in holders)
        if len(holders) > 1 and pure:
            assert holders & inside


@settings(max_examples=20, deadline=None)
@given(st.integers(40, 120), st.integers(1, 4), st.floats(0.1, 0.5), st.integers(0, 2**32))
def test_a_cut_of_small_groups_has_the_fraction_of_each_class(patients, most, fraction, seed):
    """Where a group can be had of any size up to `most`, no class is off by more than one group."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, most + 1, patients)
    groups = np.repeat(np.char.add("p", np.arange(patients).astype(str)), sizes)
    labels = np.repeat(np.arange(patients) % 2, sizes)
    cut = grouped_cut(labels, groups, fraction, seed, TEST_CUT)
    for label in (0, 1):
        total = (labels == label).sum()
        assert abs((labels[cut] == label).sum() - fraction * total) <= most
    other = grouped_cut(labels, groups, fraction, seed + 1, TEST_CUT)
    assert not np.array_equal(cut, other) or len(set(groups[cut])) < 3


GROUPS = [f"patient{number}" for number in range(8)]
ROWS = [(group, label, i) for group in GROUPS for label in ("ill", "well") for i in range(2)]


def write_folders(root, below=""):
    for number, (group, label, i) in enumerate(ROWS):
        path = root / below / label / f"{group}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(noise(number)).save(path)
    return root


def write_list(root):
    root.mkdir()
    lines = ["file_name,label,patient"]
    for number, (group, label, _) in enumerate(ROWS):
        PIL.Image.fromarray(noise(number)).save(root / f"{number}.png")
        lines.append(f"{number}.png,{label},{group}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def hub_rows(tmp_path):
    folder = write_folders(tmp_path / "pictures")
    features = Features(
        {
            "image": Image(),
            "label": ClassLabel(names=["ill", "well"]),
            "patient": Value("string"),
        }
    )
    names = [f"{label}/{group}_{i}.png" for group, label, i in ROWS]
    columns = {
        "image": [{"path": name, "bytes": (folder / name).read_bytes()} for name in names],
        "label": [label for _, label, _ in ROWS],
        "patient": [group for group, _, _ in ROWS],
    }
    return Dataset.from_dict(columns, features=features)


def write_parquet(root, tmp_path):
    root.mkdir()
    hub_rows(tmp_path).to_parquet(str(root / "train.parquet"))
    return root


def write_saved(root, tmp_path):
    hub_rows(tmp_path).save_to_disk(str(root))
    return root


COLUMN, PATTERN = {"group_column_name": "patient"}, {"group_pattern": r"(patient\d+)_"}


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("folders", PATTERN),
        ("folders", {"group_pattern": r"^\w+/(patient\d+)"}),
        ("list", COLUMN),
        ("parquet", COLUMN),
        ("parquet", PATTERN),
        ("saved", COLUMN),
        ("saved", PATTERN),
    ],
)
def test_no_group_is_in_two_splits(kind, keys, tmp_path):
    data = write_data(kind, tmp_path)
    splits = loaded(data, test_fraction=0.25, validation_fraction=0.2, **keys)
    of_picture = {noise(number).tobytes(): group for number, (group, _, _) in enumerate(ROWS)}
    groups = [
        {of_picture[split.images.picture(row).tobytes()] for row in split.rows}
        for split in (splits.train, splits.validation, splits.test)
    ]
    assert sorted(group for names in groups for group in names) == GROUPS  # each in one split
    assert [len(names) for names in groups] == [5, 1, 2]
    assert any("test is 8 images of 2 groups cut from" in line for line in splits.messages)


def write_data(kind, tmp_path):
    root = tmp_path / "data"
    if kind == "folders":
        return write_folders(root)
    if kind == "list":
        return write_list(root)
    return (write_parquet if kind == "parquet" else write_saved)(root, tmp_path)


def test_a_bad_picture_shifts_no_group(tmp_path):
    root = write_folders(tmp_path / "data")
    (root / "ill" / "patient0_0.png").write_bytes(b"no picture")
    splits = loaded(root, test_fraction=0.25, on_bad_image="skip", **PATTERN)
    of_picture = {noise(number).tobytes(): group for number, (group, _, _) in enumerate(ROWS)}
    groups = [
        {of_picture[split.images.picture(row).tobytes()] for row in split.rows}
        for split in (splits.train, splits.test)
    ]
    assert len(splits.train) + len(splits.test) == len(ROWS) - 1 and not groups[0] & groups[1]


def test_groups_of_train_in_the_test_split_are_told_of(tmp_path, caplog):
    write_folders(tmp_path / "data", "train")
    for number, name in enumerate(["ill/patient3_9.png", "well/patient90_0.png"]):
        path = tmp_path / "data" / "test" / name
        path.parent.mkdir(parents=True)
        PIL.Image.fromarray(noise(900 + number)).save(path)
    with caplog.at_level(logging.WARNING):
        loaded(tmp_path / "data", **PATTERN)
    assert "1 groups of train are in test too, with 1 of its 2 images" in caplog.text


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        ("folders", COLUMN, "no table with columns; set group_pattern"),
        ("folders", {"group_pattern": "(case)"}, "finds no group in ill/patient0_0.png"),
        ("list", {"group_column_name": "doctor"}, "no column doctor, only file_name, label, pat"),
        ("parquet", {"group_column_name": "doctor"}, "no column doctor, only image, label, pat"),
        ("saved", {"group_column_name": "doctor"}, "no column doctor, only image, label, pat"),
        ("parquet", {"group_column_name": "image"}, "row 0 has a dict in group_column_name"),
        ("folders", {"group_pattern": "^(ill|well)/"}, "group ill holds all images of class ill"),
    ],
)
def test_what_names_no_groups_is_refused(kind, keys, words, tmp_path):
    with pytest.raises(UserError, match=words.replace("(", r"\(")) as caught:
        loaded(write_data(kind, tmp_path), test_fraction=0.25, **keys)
    assert "\n" not in str(caught.value)


def test_an_empty_group_and_an_archive_are_refused(tmp_path):
    root = write_list(tmp_path / "data")
    text = (root / "metadata.csv").read_text().replace("ill,patient0\n", "ill,\n", 1)
    (root / "metadata.csv").write_text(text)
    with pytest.raises(UserError, match="row 0 has nothing in group_column_name patient"):
        loaded(root, test_fraction=0.25, **COLUMN)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"group_pattern": "(a"}, "is no regular expression"),
        ({"group_pattern": "patient"}, "has no parentheses"),
        ({"group_pattern": "(a)", "group_column_name": "b"}, "leave one of them out"),
    ],
)
def test_keys_that_name_no_groups(keys, words):
    with pytest.raises(UserError, match=words):
        make_recipe("mine", keys)


def test_the_command_ends_with_one_line_and_code_2(tmp_path, tiny, capfd):
    keys = {
        "model_name_or_path": tiny("resnet"),
        "dataset_name": write_folders(tmp_path / "data"),
        "group_pattern": "^(ill|well)/",
        "output_dir": tmp_path / "run",
    }
    words = [word for name, value in keys.items() for word in (f"--{name}", str(value))]
    assert main.run(["train", "quickstart", *words]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("hf-cifar: data: group ill holds all images of class ill")
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_a_patient_alone_may_have_a_set_of_labels(tmp_path):
    root = write_list(tmp_path / "data")
    text = (root / "metadata.csv").read_text().replace("well,patient3", "ill|well,patient3")
    (root / "metadata.csv").write_text(text)
    data = loaded(root, test_fraction=0.25, objective="multi_label", **COLUMN)
    assert set(data.label_names) == {"ill", "well", "ill|well"} and len(data.test) == 8
