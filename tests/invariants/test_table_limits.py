"""What fits stays decoded in memory, and on the device; what does not stays encoded."""

import logging

import numpy as np
import pytest
import torch
from helpers.pictures import class_folders, loaded

from hf_cifar.data import cache_entry
from hf_cifar.data.batches import RESIDENT_SHARE, resident_pixels
from hf_cifar.data.image_store import ImageFiles, ImageTable


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


def test_beyond_the_limit_images_stay_encoded_until_it_is_raised(tmp_path, monkeypatch):
    folder = class_folders(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(cache_entry, "TABLE_LIMIT", 12 * 3 * 8 * 6 - 1)
        data = loaded(folder)
        assert isinstance(data.train.images, ImageFiles) and "the limit here is" in data.messages[0]
    assert isinstance(loaded(folder).train.images, ImageTable)


@pytest.mark.parametrize("data_path", ["auto", "device", "table"])
def test_what_fits_lies_on_the_gpu(data_path, monkeypatch, caplog):
    """The choice alone: there is no GPU where this runs."""
    images = loaded("sample", data_path="table").train.images
    memory = images.pixels.nbytes / RESIDENT_SHARE
    moved = []
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device: moved.append((self.numpy(), device)) or self
    )
    for share, fits in ((0.99, True), (1.01, False)):
        properties = type("Properties", (), {"total_memory": memory / share})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, p=properties: p)
        moved.clear()
        with caplog.at_level(logging.INFO, "hf_cifar"):
            found = resident_pixels(images, torch.device("cuda"), data_path)
        want = data_path == "device" or (data_path == "auto" and fits)
        assert (found is not None) == want == bool(moved)
        assert all(
            np.array_equal(pixels, images.pixels) and str(device) == "cuda"
            for pixels, device in moved
        )
    assert ("batches are copied from the host" in caplog.text) == (data_path == "auto")
