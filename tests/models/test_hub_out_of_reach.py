"""Models of a Hub that can't be reached: from the cache, or one line within ten seconds."""

import socket

import pytest

FETCH = """
import logging, time
from hf_cifar.errors import UserError
from hf_cifar.models.inspect_repo import fetch_model

logging.basicConfig()
logging.getLogger("hf_cifar").setLevel(logging.INFO)

def fetch(name):
    start = time.perf_counter()
    try:
        outcome = fetch_model(name, None, classifier=True).weights
    except UserError as error:
        outcome = str(error)
    return [outcome, time.perf_counter() - start]

answer([fetch(name) for name in sys.argv[1:]])
"""


def test_a_refused_connection_leaves_the_cache(hub, client, full_run):
    files = {name: (full_run / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.put("bob/good", files)
    assert client(FETCH, "bob/good")[0][0] == ["model.safetensors"]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (cached, first), (absent, second) = client(
            FETCH, "bob/good", "bob/never", HF_ENDPOINT=closed
        )
    assert cached == ["model.safetensors"] and "no Hub in reach and it is not in" in absent
    assert max(first, second) < 3


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_given_up(client):
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)  # the system answers no further connection than one or two
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        silent = f"http://127.0.0.1:{server.getsockname()[1]}"
        ((message, seconds),) = client(FETCH, "bob/good", HF_ENDPOINT=silent)
    assert "no Hub in reach" in message and 9 < seconds < 12
    assert "connecting to 127.0.0.1 ... (no answer after 3 s)" in client.output
