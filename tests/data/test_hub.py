"""A data set of the Hub: downloaded once, and used from the cache when the Hub is gone."""

import os
import subprocess
import sys
import time

from helpers.data_sets import png
from helpers.hub_server import HubServer

LOAD = """
import sys
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe
try:
    data = load_data(Recipe(dataset_name=sys.argv[1], test_fraction=0.25, validation_fraction=0.0))
    print(data.label_names, len(data.train), len(data.test), data.fingerprint, data.source)
except UserError as error:
    print(error)
"""


def load(tmp_path, endpoint, name="alice/pictures"):
    env = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    env |= {"HF_HOME": str(tmp_path / "home"), "HF_CIFAR_CACHE": str(tmp_path / "cache")}
    env |= {"HF_ENDPOINT": endpoint, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.monotonic()
    command = [sys.executable, "-c", LOAD, name]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, time.monotonic() - start


def test_a_data_set_of_picture_files_outlives_the_hub(tmp_path):
    """Pictures stay files in the cache here, and rows hold their paths."""
    files = {f"{name}/{i}.png": png(40 * i + 9) for name in ("cat", "dog") for i in range(4)}
    with HubServer() as hub:
        hub.put("alice/pictures", files, "dataset")
        first, _ = load(tmp_path, hub.url)
        assert hub.seen("resolve") or hub.seen("storage")
        wrong, _ = load(tmp_path, hub.url, "alice/nothing")
    assert first.startswith("['cat', 'dog'] 6 2 ") and first.endswith("alice/pictures\n")
    assert "the Hub gave none (DatasetNotFoundError" in wrong and wrong.count("\n") == 1
    again, seconds = load(tmp_path, hub.url)
    assert again == first and seconds < 30
