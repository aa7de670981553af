"""A data set of the Hub while the Hub is out of reach: the user hears of it, and soon."""

import os
import socket
import subprocess
import sys
import time

import pytest

LOAD = """
import logging
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe
logging.basicConfig(level=logging.INFO)
try:
    load_data(Recipe(dataset_name="someone/pictures"))
except UserError as error:
    print(error)
"""


def load(tmp_path, **variables):
    """Return seconds, standard output and standard error of loading a data set of the Hub."""
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    env |= {"HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)} | variables
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start, done.stdout, done.stderr


@pytest.fixture
def silent():
    """The address of a server whose queue is full: it answers nobody, nor does it refuse."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    waiting = []
    for _ in range(8):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(server.getsockname())
        waiting.append(client)
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for client in (server, *waiting):
        client.close()


def test_nothing_answers(tmp_path, silent):
    seconds, output, log = load(tmp_path, HF_ENDPOINT=silent)
    assert seconds < 30  # with the start of Python and of the libraries
    assert "connecting to 127.0.0.1 ... (no answer after 3 s)" in log
    assert output.count("\n") == 1 and "no Hub is in reach, and it is not in the cache" in output
    assert "hf-cifar data fetch" in output and "dataset_name: sample" in output


def test_a_connection_is_refused(tmp_path):
    seconds, output, _ = load(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "no Hub is in reach" in output and seconds < 15
