"""`data fetch --source fashion-mnist`: IDX files and the Debian package."""

import gzip
import hashlib
import os
import struct

import numpy as np
import pytest
from helpers.package_layouts import commands_only, write_idx

from hf_cifar.data import fashion_mnist
from hf_cifar.data.check import check
from hf_cifar.data.download import download
from hf_cifar.data.idx_files import read_idx
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe


@pytest.fixture
def package(tmp_path):
    """A made-up package, its arrays by file, and the digests of its files."""
    random = np.random.default_rng(0)
    folder, arrays, sha256 = tmp_path / "package", {}, {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        arrays[f"{prefix}-images-idx3-ubyte"] = random.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    for name, array in arrays.items():
        sha256[name] = hashlib.sha256(write_idx(folder / f"{name}.gz", array)).hexdigest()
    return folder, arrays, sha256


def test_an_idx_file_is_read_as_it_was_written(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = write_idx(tmp_path / "a.gz", array)
    read, unpacked = read_idx(tmp_path / "a.gz")
    assert np.array_equal(read, array) and read.dtype == np.uint8 and unpacked == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not start with two zero bytes"),
        (b"\x89PNG\r\n\x1a\n", "does not start with two zero bytes"),
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"1234", "of type 0xd, not unsigned bytes"),
        (b"\0\0\x08\x00", "0 dimensions"),
        (b"\0\0\x08\xff" + b"\0" * 2000, "255 dimensions"),
        (b"\0\0\x08\x03\0\0\0\x01", "3 dimensions; expected 1 to 4 with their sizes"),
        (b"\0\0\x08\x01" + struct.pack(">I", 9) + b"12345678", "states 9 values and holds 8"),
        (b"\0\0\x08\x04" + b"\xff" * 16 + b"1", "and holds 1"),
    ],
)
def test_content_that_is_no_idx_file_is_refused(tmp_path, content, message):
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=message) as error:
        read_idx(tmp_path / "a.gz")
    assert "a.gz" in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_unpacked_are_refused(tmp_path):
    path = tmp_path / "a.gz"
    packed = gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 5000) + os.urandom(5000))
    for content in (b"no gzip", packed[:-9], packed[:100] + b"\xff" * 400 + packed[500:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as an IDX file"):
            read_idx(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        read_idx(path)


def test_a_small_file_that_unpacks_without_end_is_refused(tmp_path):
    with gzip.open(tmp_path / "a.gz", "wb", compresslevel=1) as file:
        for _ in range(65):
            file.write(bytes(2**22))
    with pytest.raises(UserError, match="unpacks to over 268 MB"):
        read_idx(tmp_path / "a.gz")


def test_the_written_data_set_is_what_the_package_holds(tmp_path, package):
    files, arrays, sha256 = package
    fashion_mnist.write(files, tmp_path / "out", sha256)
    assert [(result.split, result.rows, result.ok) for result in check(tmp_path / "out")] == [
        ("train", 30, True),
        ("test", 20, True),
    ]
    data = load_data(Recipe(dataset_name=str(tmp_path / "out"), validation_fraction=0.0))
    assert data.label_names == fashion_mnist.CLASSES and data.license == "mit"
    for split, prefix in ((data.train, "train"), (data.test, "t10k")):
        pixels = arrays[f"{prefix}-images-idx3-ubyte"]
        assert np.array_equal(split.images.pixels, np.repeat(pixels[:, None], 3, axis=1))
        assert np.array_equal(split.labels, arrays[f"{prefix}-labels-idx1-ubyte"])


def test_datasets_reads_the_written_folder(tmp_path, package):
    import datasets

    files, arrays, sha256 = package
    fashion_mnist.write(files, tmp_path / "out", sha256)
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded) == ["test", "train"]
    assert loaded["train"].features["label"].names == fashion_mnist.CLASSES
    picture = np.asarray(loaded["test"][3]["image"])
    assert np.array_equal(picture, arrays["t10k-images-idx3-ubyte"][3])


def test_another_content_is_refused(tmp_path, package):
    files, _, _ = package
    with pytest.raises(UserError, match="not Fashion-MNIST's; install the package"):
        fashion_mnist.write(files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ({}, "there is no apt-get command here; on Debian or Ubuntu"),
        (
            {"apt-get": "import sys; sys.exit('E: Unable to locate package')"},
            "`apt-get download dataset-fashion-mnist` failed .E: Unable to locate package.; on",
        ),
        ({"apt-get": ""}, "train-images-idx3-ubyte.gz cannot be read .*No such file"),
        (
            {"apt-get": "open('x.deb', 'w').write('no package')"},
            "there is no dpkg-deb command here",
        ),
    ],
)
@pytest.mark.skipif(fashion_mnist.INSTALLED.is_dir(), reason="the package is installed here")
def test_without_the_package_one_line_says_what_to_do(tmp_path, monkeypatch, commands, message):
    monkeypatch.setenv("PATH", commands_only(tmp_path / "bin", commands))
    with pytest.raises(UserError, match=message) as error:
        download("fashion-mnist", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
