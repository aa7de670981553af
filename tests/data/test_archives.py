"""The original CIFAR archives, in the python and the binary version."""

import os
import pickle
import tarfile

import numpy as np
import pytest
from helpers.data_sets import class_counts, class_folder, recipe

from hf_cifar.data.cifar10 import CLASSES
from hf_cifar.data.image_store import ImageTable
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    """One cache for the file, so that the sample is decoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_CIFAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
