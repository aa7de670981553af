"""The source of docs/add_a_source.md works as it stands there."""

import re
import types
from pathlib import Path

import numpy as np
import pytest

from hf_cifar.data.cache_entry import SplitRequest
from hf_cifar.data.image_cache import load_images
from hf_cifar.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "add_a_source.md"


@pytest.fixture
def npz(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))
    example = types.ModuleType("npz")
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    exec(code[1], example.__dict__)
    return example


def test_the_example_reads_what_was_written(npz, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 8, 3), dtype=np.uint8)
    labels = np.arange(10) % 2
    path = tmp_path / "pictures.npz"
    np.savez(path, train_images=images, train_labels=labels, names=["cat", "dog"])
    source = npz.find(path)
    assert source.splits == ("train",)
    for _ in range(2):  # built, and from the cache
        request = SplitRequest(
            lambda folder: source.open("train", folder), source.identity, source.state, "pictures"
        )
        store = load_images(request).store
        assert store.label_names == ["cat", "dog"] and store.labels.tolist() == labels.tolist()
        assert np.array_equal(store.picture(3), images[3])


def test_the_example_names_a_broken_file(npz, tmp_path):
    (tmp_path / "pictures.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"pictures\.npz cannot be read"):
        npz.find(tmp_path / "pictures.npz")
