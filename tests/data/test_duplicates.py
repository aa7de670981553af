"""Pictures of test that lie in train, exactly by their pixels."""

import shutil

import numpy as np
import PIL.Image
import pytest
from helpers.pictures import class_folders, loaded, noise

from hf_cifar.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


def photo(seed, height, width):
    """A smooth picture, as JPEGs are made for."""
    small = PIL.Image.fromarray(noise(seed, 6, 6))
    return small.resize((width, height), PIL.Image.Resampling.BICUBIC)


def train_and_test(root, train_sizes=((8, 6),), test_sizes=((8, 6),)):
    class_folders(root / "train", train_sizes, per_class=6)
    class_folders(root / "test", test_sizes, per_class=3)
    for number, path in enumerate(sorted((root / "test").rglob("*.png"))):
        height, width = np.asarray(PIL.Image.open(path)).shape[:2]
        PIL.Image.fromarray(noise(9000 + number, height, width)).save(path)
    return root


def duplicates(data):
    return [message for message in data.messages if "exactly by their pixels" in message]


MIXED = ((8, 6), (9, 7), (10, 8))


@pytest.mark.parametrize("sizes", [((8, 6),), MIXED], ids=["table", "files"])
def test_copies_are_counted_once_and_dropped_on_demand(tmp_path, sizes):
    root = train_and_test(tmp_path / "data", sizes, sizes)
    assert duplicates(loaded(root)) == []
    for name in ("0.png", "1.png"):
        copy = PIL.Image.open(root / "train" / "cat" / name)
        copy.save(root / "test" / "cat" / f"again {name}", compress_level=0)
    for name in ("a.bmp", "b.png"):  # the same picture thrice in train
        PIL.Image.open(root / "train" / "cat" / "0.png").save(root / "train" / "dog" / name)
    for _ in range(2):  # built, and from the cache
        (message,) = duplicates(loaded(root))
        assert "data: 2 of 8 test images are in train too" in message
        assert "drop_test_duplicates: true takes them out of train" in message
    whole, data = loaded(root), loaded(root, drop_test_duplicates=True)
    assert len(whole.train) == 14 and len(data.train) == 10 and len(data.test) == 8
    assert "; 4 images were taken out of train" in duplicates(data)[0]
    assert whole.fingerprint != data.fingerprint
    test = {data.test.images.picture(row).tobytes() for row in data.test.rows}
    assert not any(data.train.images.picture(row).tobytes() in test for row in data.train.rows)


def test_a_test_split_that_is_cut_from_train(tmp_path):
    root = class_folders(tmp_path / "data", per_class=20)
    for name in ("cat", "dog"):
        for i in range(20):
            shutil.copy(root / name / f"{i}.png", root / name / f"copy {i}.png")
    data = loaded(root, test_fraction=0.5)
    assert "of 40 test images are in train too" in duplicates(data)[0]
    few = loaded(root, test_fraction=0.5, drop_test_duplicates=True)
    assert len(few.train) < 40 and len(few.test) == 40


def test_jpegs_among_many_sizes(tmp_path):
    """Of these only a draft is decoded when they are checked."""
    root = tmp_path / "data"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
    for i in range(6):
        height, width = ((120, 160), (100, 100), (90, 200))[i % 3]
        folder = ("cat", "dog")[i % 2]
        photo(i, height, width).save(root / "train" / folder / f"{i}.jpg", quality=90)
        photo(50 + i, height, width).save(root / "test" / folder / f"{i}.jpg", quality=90)
    assert duplicates(loaded(root)) == []
    train = root / "train"
    shutil.copy(train / "cat" / "0.jpg", root / "test" / "cat" / "same file.jpg")
    PIL.Image.open(train / "dog" / "1.jpg").save(root / "test" / "dog" / "lossless.png")
    PIL.Image.open(train / "cat" / "2.jpg").save(root / "test" / "cat" / "worse.jpg", quality=50)
    (message,) = duplicates(loaded(root))
    assert "2 of 9 test images" in message


def test_a_table_of_jpegs_and_files_of_many_sizes(tmp_path):
    root = tmp_path / "data"
    for i in range(4):
        for split, sizes in (("train", ((120, 160),)), ("test", ((120, 160), (90, 200)))):
            folder = root / split / ("cat", "dog")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            height, width = sizes[i // 2 % len(sizes)]
            photo(100 * len(sizes) + i, height, width).save(folder / f"{i}.jpg", quality=90)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    photo(7, 160, 120).save(root / "train" / "cat" / "turned.jpg", exif=turned)
    for name in ("0.jpg", "turned.jpg"):
        shutil.copy(root / "train" / "cat" / name, root / "test" / "cat" / f"copy of {name}")
    data = loaded(root)
    assert data.train.images.pixels is not None and data.test.images.pixels is None
    assert "2 of 6 test images" in duplicates(data)[0]


def test_dropping_a_whole_class(tmp_path):
    root = train_and_test(tmp_path / "data")
    for path in (root / "train" / "dog").iterdir():
        shutil.copy(path, root / "test" / "dog" / f"copy {path.name}")
    with pytest.raises(UserError, match="drop_test_duplicates leaves no image of class dog"):
        loaded(root, drop_test_duplicates=True)


def test_cifar_10s_sample_has_none():
    assert duplicates(loaded("sample")) == []
