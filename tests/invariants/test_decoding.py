"""A picture is decoded once: not again by a second start, nor by processes that start together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.decoding import count_decoded
from helpers.pictures import class_folders, loaded

START = """
import json, sys, time
from hf_cifar.data.load import load_data
from hf_cifar.recipe.recipe import Recipe
start = time.perf_counter()
data = load_data(Recipe(dataset_name=sys.argv[1], test_fraction=0.0))
seconds = time.perf_counter() - start
print(json.dumps([
    "decoded in" in data.messages[0],
    seconds,
    [name for name in ("datasets", "pyarrow", "torch") if name in sys.modules],
]))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


def start(folder: Path | str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", START, str(folder)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_each_picture_is_decoded_once_and_a_second_start_decodes_nothing(tmp_path, monkeypatch):
    decoded = count_decoded(monkeypatch)
    folder = class_folders(tmp_path / "data")
    first = loaded(folder)
    assert decoded == ["decode_split"] * 12
    second = loaded(folder)
    assert len(decoded) == 12
    assert "mapped from the cache" in second.messages[0] and "decoded in" in first.messages[0]
    assert second.fingerprint == first.fingerprint


def test_pictures_of_many_sizes_are_checked_once_and_decoded_when_asked_for(tmp_path, monkeypatch):
    folder = class_folders(tmp_path / "data", ((8, 6), (5, 7)))
    images = loaded(folder).train.images
    decoded = count_decoded(monkeypatch)
    loaded(folder)
    assert decoded == []
    images.batch(np.array([0, 1, 2]))
    assert decoded == ["image_store"] * 3


def test_a_warm_start_of_the_sample_is_quick_and_imports_nothing_heavy():
    loaded("sample")
    decoded, seconds, heavy = json.loads(start("sample").communicate()[0])
    assert not decoded and heavy == []
    assert seconds < 1


def test_processes_that_start_together_decode_once(tmp_path):
    folder = class_folders(tmp_path / "data", per_class=100)
    processes = [start(folder) for _ in range(3)]
    decoded = [json.loads(process.communicate()[0])[0] for process in processes]
    assert sorted(decoded) == [False, False, True]
