"""`data_path: device` asks for a table, says so where there can't be one, and brings the same
images.
"""

import logging

import numpy as np
import PIL.Image
import pytest
import torch

from hf_cifar.data.batches import ImageBatches, resident_pixels
from hf_cifar.data.image_store import ImageTable
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError
from hf_cifar.recipe.load import load_recipe


def loaded(tmp_path, folder, data_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"dataset_name: {folder}\ndata_path: {data_path}\n")
    return load_data(load_recipe(str(path)))


def test_images_of_many_sizes_can_not_wait_on_the_device(tmp_path):
    for name, sizes in (("cat", (8, 9)), ("dog", (8, 8))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            PIL.Image.new("RGB", (8, sizes[i % 2]), (i * 12, 0, 0)).save(
                tmp_path / "data" / name / f"{i}.png"
            )
    for _ in range(2):  # decoded, and remembered
        with pytest.raises(
            UserError, match=r"data_path is device, but .*sizes differ.*; set data_path to auto"
        ):
            loaded(tmp_path, tmp_path / "data", "device")
    assert not isinstance(loaded(tmp_path, tmp_path / "data", "auto").train.images, ImageTable)


def test_device_is_the_table_where_there_is_no_gpu(tmp_path, caplog):
    data = loaded(tmp_path, "sample", "device")
    assert isinstance(data.train.images, ImageTable)
    with caplog.at_level(logging.INFO, "hf_cifar"):
        assert resident_pixels(data.train.images, torch.device("cpu"), "device") is None
    assert "data_path is device, which here is the host (cpu)" in caplog.text


def test_rows_of_a_resident_table_are_the_images(tmp_path):
    """What the model gets from rows and from copied images is the same."""
    from transformers import ViTImageProcessor

    from hf_cifar.augmentation.transforms import Transforms

    split = loaded(tmp_path, "sample", "table").train
    transforms = Transforms(
        ViTImageProcessor(size={"height": 32, "width": 32}), 32, scale=(0.4, 1.0), flip=0.5, seed=3
    )
    resident = torch.from_numpy(np.array(split.images.pixels))
    for training in (True, False):
        copied, on_device = (
            ImageBatches(split, transforms, training=training, resident=r) for r in (None, resident)
        )
        tickets = [len(split) + 5, 3, len(split) - 1]
        a, b = (
            s.model_inputs(s.__getitems__(tickets), torch.device("cpu"))
            for s in (copied, on_device)
        )
        assert "rows" in on_device.__getitems__(tickets) and "images" in copied.__getitems__(
            tickets
        )
        assert all(torch.equal(a[k], b[k]) for k in ("pixel_values", "labels"))
