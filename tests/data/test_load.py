"""Sources and splits: every kind of data set that `dataset_name` can be, cuts, and what is wrong
with data.
"""

import os
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cifar.data.cifar10 import CLASSES, write_parquet
from hf_cifar.data.image_store import ImageFiles, ImageTable
from hf_cifar.data.load import check_classes, load_data, load_split
from hf_cifar.data.sources import saved
from hf_cifar.data.sources.columns import Columns
from hf_cifar.data.sources.find import SAMPLE, find_source
from hf_cifar.data.splits import VALIDATION_CUT, first_rows, samples_per_class, stratified_cut
from hf_cifar.errors import UserError
from hf_cifar.recipe.fields import TRAINING_DEFAULTS
from hf_cifar.recipe.recipe import Recipe


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """One cache for the file, so that the sample is decoded once."""
    before = os.environ.get("HF_CIFAR_CACHE")
    os.environ["HF_CIFAR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("HF_CIFAR_CACHE")
    if before is not None:
        os.environ["HF_CIFAR_CACHE"] = before


def recipe(dataset, *, seed=0, **keys):
    return Recipe(dataset_name=str(dataset), training=TRAINING_DEFAULTS | {"seed": seed}, **keys)


def load_for_a_classifier(recipe):
    data = load_data(recipe)
    splits = (data.train, data.validation, data.test)
    check_classes(data.source, [split for split in splits if split is not None])


def png(value, size=(4, 4)):
    import io

    file = io.BytesIO()
    PIL.Image.new("RGB", size, (value % 256,) * 3).save(file, "PNG")
    return file.getvalue()


def parquet(path, labels, column="label", names=None, image_type=None, extra=None):
    """Images whose grey value is the row; with `names`, as `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [png(row) for row in range(len(labels))]
    if names:
        write_parquet(path, images, np.array(labels), names)
        return
    rows = [{"bytes": image, "path": None} for image in images] if image_type is None else images
    pq.write_table(
        pa.table({"picture": pa.array(rows, image_type), column: labels} | (extra or {})), path
    )


def class_folder(root, counts, size=(4, 4)):
    """root/PATH/i.png for each PATH: count."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(png(i, size))
    return root


def class_counts(split):
    return np.bincount(split.labels).tolist()


# The sample


def test_the_sample_is_balanced_and_becomes_three_disjoint_splits():
    found = load_data(recipe("sample"))
    assert [len(found.train), len(found.validation), len(found.test)] == [1960, 40, 1000]
    assert class_counts(found.validation) == [4] * 10 and class_counts(found.test) == [100] * 10
    assert not set(found.train.rows) & set(found.validation.rows)
    assert (
        found.train.images is found.validation.images
        and found.test.images is not found.train.images
    )
    assert found.label_names == CLASSES and found.source == "sample" and found.license == "unknown"
    for split in (found.train, found.validation, found.test):
        assert isinstance(split.images, ImageTable) and split.images.size == (32, 32)
        assert np.array_equal(split.labels, split.images.labels[split.rows])
        assert (
            split.labels.dtype == split.rows.dtype == np.int64 and (np.diff(split.rows) > 0).all()
        )
    assert sum(file.stat().st_size for file in SAMPLE.rglob("*") if file.is_file()) < 7e6


def test_cuts_follow_the_seed_and_only_the_seed():
    first, again, other = (load_data(recipe("sample", seed=seed)) for seed in (0, 0, 1))
    assert (
        np.array_equal(first.validation.rows, again.validation.rows)
        and first.fingerprint == again.fingerprint
    )
    assert (
        not np.array_equal(first.validation.rows, other.validation.rows)
        and first.fingerprint != other.fingerprint
    )
    few = load_data(recipe("sample", train_samples_per_class=5))
    assert np.array_equal(few.validation.rows, first.validation.rows)
    assert class_counts(few.train) == [5] * 10 and set(few.train.rows) <= set(first.train.rows)


def test_sample_limits_take_the_first_of_each_class():
    found = load_data(
        recipe("sample", max_train_samples=105, max_eval_samples=50, validation_fraction=0.0)
    )
    assert found.validation is None
    assert (
        len(found.train) == 105
        and set(class_counts(found.train)) == {10, 11}
        and class_counts(found.test) == [5] * 10
    )
    labels = found.test.images.labels
    expected = sorted(row for label in range(10) for row in np.flatnonzero(labels == label)[:5])
    assert found.test.rows.tolist() == expected


def test_one_split_is_loaded_alone_and_is_the_same():
    whole = load_data(recipe("sample", max_eval_samples=30))
    for name in ("train", "validation", "test"):
        alone = load_split(recipe("sample", max_eval_samples=30), name)
        assert alone.name == name and np.array_equal(alone.rows, getattr(whole, name).rows)
    with pytest.raises(UserError, match="validation_fraction is 0"):
        load_split(recipe("sample", validation_fraction=0), "validation")
    with pytest.raises(UserError, match="choose train, validation or test"):
        load_split(recipe("sample"), "tets")


def test_evaluation_reads_the_test_split_alone(tmp_path):
    parquet(tmp_path / "test-00000-of-00001.parquet", [0, 1, 0, 1], names=["a", "b"])
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"never read")
    assert len(load_split(recipe(tmp_path), "test")) == 4


# Cuts as properties

label_arrays = st.lists(st.integers(0, 6), min_size=2, max_size=200).map(
    lambda labels: np.unique(np.array(labels), return_inverse=True)[1].astype(np.int64)
)


@settings(max_examples=200, deadline=None)
@given(labels=label_arrays, fraction=st.floats(0.01, 0.9), seed=st.integers(0, 2**32))
def test_a_cut_is_stratified_and_of_the_size_asked(labels, fraction, seed):
    cut = stratified_cut(labels, fraction, seed, VALIDATION_CUT)
    counts, taken = np.bincount(labels), np.bincount(labels[cut], minlength=labels.max() + 1)
    assert (np.diff(cut) > 0).all() and (cut >= 0).all() and (cut < len(labels)).all()
    least, most = np.minimum(counts - 1, 1), counts - 1
    assert (taken >= least).all() and (taken <= most).all()
    assert len(cut) == np.clip(round(fraction * len(labels)), least.sum(), most.sum())
    if (np.floor(counts * fraction) >= 1).all() and (
        counts * fraction + 1 <= most
    ).all():  # no bound in the way
        assert (np.abs(taken - counts * len(cut) / len(labels)) < 1).all()
    assert np.array_equal(cut, stratified_cut(labels, fraction, seed, VALIDATION_CUT))


@settings(max_examples=200, deadline=None)
@given(labels=label_arrays, most=st.integers(1, 250))
def test_first_rows_keep_every_class_and_the_order(labels, most):
    rows = first_rows(labels, most)
    assert len(rows) == min(most, len(labels)) and (np.diff(rows) > 0).all()
    if most >= len(set(labels)):
        assert set(labels[rows]) == set(labels)
    for label in set(labels):
        mine = np.flatnonzero(labels == label)
        taken = rows[labels[rows] == label]
        assert np.array_equal(taken, mine[: len(taken)])
    assert rows.tolist() == list(range(len(labels))) or most < len(labels)


@settings(max_examples=100, deadline=None)
@given(labels=label_arrays, per_class=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_few_shot_is_balanced_or_refused(labels, per_class, seed):
    counts = np.bincount(labels)
    names = [f"class {i}" for i in range(len(counts))]
    if counts.min() < per_class:
        with pytest.raises(UserError, match=f"class {np.flatnonzero(counts < per_class)[0]} "):
            samples_per_class(labels, per_class, seed, names)
    else:
        assert np.bincount(labels[samples_per_class(labels, per_class, seed, names)]).tolist() == [
            per_class
        ] * len(counts)


@settings(max_examples=15, deadline=None)
@given(
    validation=st.floats(0, 0.4),
    few=st.none() | st.integers(1, 50),
    most=st.none() | st.integers(10, 3000),
    seed=st.integers(0, 1000),
)
def test_splits_never_share_a_row(validation, few, most, seed):
    found = load_data(
        recipe(
            "sample",
            validation_fraction=validation,
            train_samples_per_class=few,
            max_train_samples=most,
            seed=seed,
        )
    )
    held = set() if found.validation is None else set(found.validation.rows.tolist())
    assert not held & set(found.train.rows.tolist())
    assert len(held) == (max(round(validation * 2000), 10) if validation else 0)
    if few and (not most or most >= 10 * few):
        assert class_counts(found.train) == [few] * 10


# Parquet


def test_columns_are_found_by_type_and_named_by_the_recipe(tmp_path):
    parquet(
        tmp_path / "data" / "train-0.parquet",
        [3, 1, 2, 0],
        column="kind",
        extra={"note": ["a", "b", "c", "d"]},
    )
    found = load_data(recipe(tmp_path, validation_fraction=0, test_fraction=0))
    assert found.label_names == ["0", "1", "2", "3"] and found.train.labels.tolist() == [3, 1, 2, 0]
    assert found.train.images.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    found = load_data(
        recipe(tmp_path, label_column_name="note", validation_fraction=0, test_fraction=0)
    )
    assert found.label_names == ["a", "b", "c", "d"]
    with pytest.raises(
        UserError, match=r"label_column_name is labels, but the columns are picture .*kind .*note"
    ):
        load_data(recipe(tmp_path, label_column_name="labels"))
    with pytest.raises(UserError, match="image_column_name is kind, which is of another type"):
        load_data(recipe(tmp_path, image_column_name="kind"))


def test_two_label_columns_need_a_word(tmp_path):
    parquet(tmp_path / "train-0.parquet", [0, 1], column="fine", extra={"coarse": [1, 0]})
    keys = {"validation_fraction": 0, "test_fraction": 0}
    with pytest.raises(UserError, match="set label_column_name, since 2 columns"):
        load_data(recipe(tmp_path, **keys))
    assert load_data(
        recipe(tmp_path, label_column_name="coarse", **keys)
    ).train.labels.tolist() == [1, 0]


def test_string_labels_sort_over_all_splits_and_images_can_be_plain_bytes(tmp_path):
    parquet(tmp_path / "train.parquet", ["dog", "cat", "cat"], image_type=pa.binary())
    parquet(tmp_path / "test.parquet", ["cat", "dog"], image_type=pa.binary())
    found = load_data(recipe(tmp_path, validation_fraction=0))
    assert found.label_names == ["cat", "dog"]
    assert found.train.labels.tolist() == [1, 0, 0] and found.test.labels.tolist() == [0, 1]


def test_names_from_the_card_and_a_validation_split_of_the_source(tmp_path):
    for split in ("train", "validation", "test"):
        parquet(tmp_path / split / "0000.parquet", [0, 1, 0, 1], column="label")
    (tmp_path / "README.md").write_text(
        "---\nlicense: cc0-1.0\ndataset_info:\n  features:\n"
        "  - name: picture\n    dtype: image\n"
        "  - name: label\n    dtype:\n      class_label:\n        names:\n"
        "          '0': no\n          '1': 'yes'\n---\n# Card\n"
    )
    found = load_data(recipe(tmp_path, validation_fraction=0.5))
    assert found.license == "cc0-1.0" and found.label_names[1] == "yes"
    assert (
        len(found.train) == len(found.validation) == 4
        and found.validation.images is not found.train.images
    )


def test_configurations_have_to_be_chosen(tmp_path):
    for config in ("one", "two"):
        parquet(
            tmp_path / config / "train-0.parquet",
            [0, 1] if config == "one" else [1, 0, 1],
            names=["a", "b"],
        )
    keys = {"validation_fraction": 0, "test_fraction": 0}
    with pytest.raises(UserError, match="this folder has one, two"):
        load_data(recipe(tmp_path, **keys))
    assert len(load_data(recipe(tmp_path, dataset_config_name="two", **keys)).train) == 3


def test_parquet_of_mixed_sizes_is_read_row_by_row(tmp_path):
    rows = [
        {"bytes": png(row, (3 + row % 5, 4)), "path": f"folder/{row}.png"} for row in range(600)
    ]
    pq.write_table(
        pa.table({"img": rows, "label": [row % 2 for row in range(600)]}),
        tmp_path / "train.parquet",
    )
    for _ in range(2):  # cold and from the cache
        found = load_data(recipe(tmp_path, validation_fraction=0, test_fraction=0))
        assert isinstance(found.train.images, ImageFiles)
        for row in (599, 0, 300):
            pixels = found.train.images.read(row)
            assert pixels.shape == (3, 4, 3 + row % 5) and pixels[0, 0, 0] == row % 256
    assert found.train.images.name(7) == "row 7 (7.png)"


def test_a_bad_row_is_named(tmp_path):
    rows = [
        {"bytes": png(0), "path": None},
        {"bytes": png(1)[:-30], "path": None},
        {"bytes": None, "path": None},
    ] * 2
    pq.write_table(pa.table({"img": rows, "label": [0, 0, 1, 1, 1, 0]}), tmp_path / "train.parquet")
    keys = {"validation_fraction": 0, "test_fraction": 0}
    with pytest.raises(UserError, match="split train: row 1 cannot be read as an image"):
        load_data(recipe(tmp_path, **keys))
    found = load_data(recipe(tmp_path, on_bad_image="skip", **keys))
    assert found.train.images.bad == [
        "row 1",
        "row 2",
        "row 4",
        "row 5",
    ] and found.train.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 2], ["a", "b"], r"row 2 has label 2, outside 0\.\.1"),
        ([0, -3, 1], ["a", "b"], r"row 1 has label -3, outside 0\.\.1"),
        ([0, 1, -1], None, "row 2 has label -1.*unlabelled"),
        ([0, None, 1], None, "row 1 has no label"),
        ([0, 0, 0], ["a", "b"], r"no image of class b \(1 of 2 classes\)"),
        ([0, 0, 0], ["a"], r"only one class \(a\)"),
        ([0, 0, 2], None, r"no image of class 1 "),
        ([], None, "there are no images"),
    ],
)
def test_bad_labels(tmp_path, labels, names, message):
    if names:
        parquet(tmp_path / "train.parquet", labels, names=names)
    else:
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = pa.array([{"bytes": png(0), "path": None}] * len(labels), image_type)
        pq.write_table(
            pa.table({"img": images, "label": pa.array(labels, pa.int64())}),
            tmp_path / "train.parquet",
        )
    with pytest.raises(UserError, match=message) as error:
        load_for_a_classifier(recipe(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PAR1 no parquet at all", "half"])
def test_a_broken_parquet_file_is_named(tmp_path, content):
    path = tmp_path / "train-00000-of-00001.parquet"
    parquet(path, [0, 1], names=["a", "b"])
    path.write_bytes(path.read_bytes()[:300] if content == "half" else content)
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet cannot be read"):
        load_data(recipe(tmp_path))


def test_a_folder_that_datasets_saved(tmp_path):
    import datasets

    features = datasets.Features(
        {"x": datasets.Image(), "y": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"x": [{"bytes": png(i), "path": None} for i in range(8)], "y": [0, 1] * 4}
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=part, test=part.select(range(4))).save_to_disk(tmp_path / "both")
    part.save_to_disk(tmp_path / "one")
    found = load_data(recipe(tmp_path / "both", validation_fraction=0))
    assert found.label_names == ["no", "yes"] and [len(found.train), len(found.test)] == [8, 4]
    assert found.train.images.pixels[:, 0, 0, 0].tolist() == list(range(8))
    found = load_data(recipe(tmp_path / "one", validation_fraction=0, test_fraction=0.25))
    assert [len(found.train), len(found.test)] == [6, 2]


# The Hub


def test_what_datasets_loads_is_what_the_parquet_reader_loads(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    source = saved.find_hub(str(SAMPLE), None, None, Columns())
    assert sorted(source.splits) == ["test", "train"]
    other = find_source("sample")
    (tmp_path / "room").mkdir()
    theirs, ours = source.open("test", tmp_path), other.open("test", tmp_path / "room")
    assert theirs.label_names == ours.label_names == CLASSES
    assert np.array_equal(theirs.labels, ours.labels) and theirs.encoded(999) == ours.encoded(999)


def test_no_hub_in_reach(tmp_path):
    code = (
        "from hf_cifar.data.load import load_data; from hf_cifar.errors import UserError\n"
        "from hf_cifar.recipe.recipe import Recipe\n"
        "try: load_data(Recipe(dataset_name='uoft-cs/cifar10'))\n"
        "except UserError as error: print(error)"
    )
    env = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1, done.stderr
    assert (
        "hf-cifar data fetch --source npm --out DIR" in done.stdout
        and "dataset_name: sample" in done.stdout
    )


# Class folders


def test_class_folders_with_splits(tmp_path):
    class_folder(
        tmp_path, {"train/b": 5, "train/a": 6, "val/a": 2, "val/b": 2, "test/a": 1, "test/b": 3}
    )
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "a" / "meta.json").write_text("{}")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("no image")
    class_folder(tmp_path, {"train/a/deeper": 1, "train/.cache": 1})
    found = load_data(recipe(tmp_path, validation_fraction=0.5))
    assert (
        found.label_names == ["a", "b"] and found.source == tmp_path.name and found.license is None
    )
    assert [class_counts(s) for s in (found.train, found.validation, found.test)] == [
        [7, 5],
        [2, 2],
        [1, 3],
    ]


def test_class_folders_without_splits_are_cut_by_the_seed(tmp_path):
    class_folder(tmp_path, {"a": 40, "b": 60})
    found = load_data(recipe(tmp_path, validation_fraction=0.1, test_fraction=0.2))
    assert [class_counts(s) for s in (found.train, found.validation, found.test)] == [
        [29, 43],
        [3, 5],
        [8, 12],
    ]
    rows = np.concatenate([found.train.rows, found.validation.rows, found.test.rows])
    assert sorted(rows) == list(range(100))
    assert np.array_equal(
        load_split(recipe(tmp_path, validation_fraction=0.1), "test").rows, found.test.rows
    )
    assert load_data(recipe(tmp_path, test_fraction=0.0)).test is None


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "holds no pictures in class folders"),
        ({"a": 0, "b": 0}, "holds no pictures in class folders"),
        ({"a": 3}, r"only one class \(a\)"),
        ({"a": 3, "b": 0}, "split train: no image of class b"),
        ({"train/a": 3, "train/b": 3, "test/a": 2}, "split test: no image of class b"),
        (
            {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2, "test/c": 1},
            "split train: no image of class c",
        ),
        ({"test/a": 3, "test/b": 3}, "no train split, only test"),
        (
            {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "dev/a": 1},
            "folders dev and val both name",
        ),
    ],
)
def test_class_folders_with_something_wrong(tmp_path, counts, message):
    class_folder(tmp_path, counts)
    with pytest.raises(UserError, match=message) as error:
        load_for_a_classifier(recipe(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("~/no/such/folder", "no such folder"),
        (__file__, "is a file, but no CIFAR archive"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(UserError, match=message):
        load_data(recipe(name))


@pytest.mark.parametrize(
    "keys", [{"validation_fraction": 1.0}, {"validation_fraction": -0.1}, {"test_fraction": 2.0}]
)
def test_fractions_out_of_range(keys):
    with pytest.raises(UserError, match="at least 0 and below 1"):
        load_data(recipe("sample", **keys))


def test_too_few_for_few_shot():
    with pytest.raises(UserError, match=r"train_samples_per_class is 197.*airplane \(196\)"):
        load_data(recipe("sample", train_samples_per_class=197))


# The original archives


def batches():
    """Six small batches of CIFAR records."""
    random = np.random.default_rng(0)
    return [
        (random.integers(0, 256, (20, 3072), dtype=np.uint8), [i % 10 for i in range(20)])
        for _ in range(6)
    ]


def write_python(folder, protocol=2):
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name, (pixels, labels) in zip(names, batches(), strict=True):
        content = {
            b"batch_label": name.encode(),
            b"labels": labels,
            b"data": pixels,
            b"filenames": [b"x.png"] * 20,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    (folder / "batches.meta").write_bytes(
        pickle.dumps({b"label_names": [c.encode() for c in CLASSES]}, protocol)
    )
    return folder


def write_binary(folder):
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, (pixels, labels) in zip(names, batches(), strict=True):
        (folder / name).write_bytes(
            np.concatenate([np.uint8(labels)[:, None], pixels], axis=1).tobytes()
        )
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return folder


def tar(folder, path):
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, folder.name)
    return path


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "write",
    [write_python, write_binary, lambda f: write_python(f, 4), lambda f: write_python(f, 5)],
)
def test_the_original_archives(tmp_path, write, packed):
    folder = write(tmp_path / "cifar-10-batches-xx")
    path = tar(folder, tmp_path / "cifar-10-xx.tar.gz") if packed else folder
    found = load_data(recipe(path, validation_fraction=0, data_path="workers"))
    assert found.label_names == CLASSES and [len(found.train), len(found.test)] == [100, 20]
    assert isinstance(found.train.images, ImageTable)
    expected = np.concatenate([pixels for pixels, _ in batches()]).reshape(-1, 3, 32, 32)
    assert np.array_equal(found.train.images.pixels, expected[:100]) and np.array_equal(
        found.test.images.pixels, expected[100:]
    )


def test_cifar_100_takes_its_fine_labels(tmp_path):
    pixels, _ = batches()[0]
    names = [f"n{i}".encode() for i in range(20)]
    (tmp_path / "cifar-100-python").mkdir()
    for split in ("train", "test"):
        content = {b"data": pixels, b"fine_labels": list(range(20)), b"coarse_labels": [0] * 20}
        (tmp_path / "cifar-100-python" / split).write_bytes(pickle.dumps(content, 2))
    (tmp_path / "cifar-100-python" / "meta").write_bytes(
        pickle.dumps({b"fine_label_names": names}, 2)
    )
    found = load_data(
        recipe(tmp_path, validation_fraction=0)
    )  # the folder that holds the unpacked one
    assert found.train.labels.tolist() == list(range(20)) and found.label_names[3] == "n3"


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    folder = write_python(tmp_path / "cifar")
    (folder / "data_batch_3").write_bytes(
        pickle.dumps({b"data": Evil(tmp_path / "ran"), b"labels": []}, 2)
    )
    with pytest.raises(UserError, match=r"data_batch_3 is not read as a CIFAR pickle.*system"):
        load_data(recipe(folder))
    assert not (tmp_path / "ran").exists()


def test_broken_archives(tmp_path):
    folder = write_binary(tmp_path / "cifar")
    packed = tar(folder, tmp_path / "cifar.tar.gz")
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cifar\.tar\.gz cannot be unpacked"):
        load_data(recipe(packed))
    (folder / "data_batch_2.bin").write_bytes((folder / "data_batch_2.bin").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"data_batch_2\.bin has 61459 bytes.*truncated"):
        load_data(recipe(folder))
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(UserError, match=r"data_batch_2\.bin cannot be read"):
        load_data(recipe(folder))
    other = tar(class_folder(tmp_path / "other", {"a": 1}), tmp_path / "other.tar.gz")
    with pytest.raises(UserError, match=r"other\.tar\.gz is no CIFAR archive"):
        load_data(recipe(other))


@pytest.mark.real
def test_all_of_cifar_10():
    from hf_cifar.data.cifar10 import SHA256

    found = load_data(
        recipe(os.path.join(os.environ.get("HF_CIFAR_SHARED", "../shared"), "data", "cifar10"))
    )
    assert found.train.images.fingerprint == SHA256["train", 50_000]
    assert found.test.images.fingerprint == SHA256["test", 10_000]
    assert class_counts(found.validation) == [100] * 10
