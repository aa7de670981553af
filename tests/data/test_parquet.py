"""Parquet files: columns, class names, configurations, bad rows."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.data_sets import load_for_a_classifier, parquet, png, recipe

from hf_cifar.data.image_store import ImageFiles
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    """One cache for the file, so that the sample is decoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_CIFAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
