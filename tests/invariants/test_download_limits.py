"""Downloads of pictures end, in time and in size, whatever a server does."""

import time

import pytest
from helpers.picture_server import serving

from hf_cifar.errors import UserError
from hf_cifar.evaluation import named_picture
from hf_cifar.evaluation.named_picture import read_picture

HEAD = b"HTTP/1.0 200 OK\r\n"


def trickle(first: bytes, drop: bytes):
    """Return what sends `first`, and then `drop` again and again."""

    def send(file):
        file.write(first)
        for _ in range(200):
            file.write(drop)
            file.flush()
            time.sleep(0.05)

    return send


@pytest.fixture
def limits(monkeypatch):
    monkeypatch.setattr(named_picture, "LONGEST_DOWNLOAD", 0.6)
    monkeypatch.setattr(named_picture, "MAX_PICTURE_BYTES", 10_000)
    monkeypatch.setattr("hf_cifar.data.decode.MAX_PICTURE_BYTES", 10_000)


def test_headers_and_content_that_trickle_in(limits):
    slow = {"/head": trickle(HEAD, b"X"), "/content": trickle(HEAD + b"\r\n", b"x")}
    with serving(slow) as server:
        for path in slow:
            start = time.monotonic()
            with pytest.raises(UserError, match="its download took over"):
                read_picture(server.root + path)
            assert time.monotonic() - start < 3


def test_content_without_end(limits):
    endless = {"/endless": trickle(HEAD + b"\r\n", bytes(4000))}
    match = "MB, too much to decode safely"
    with serving(endless) as server, pytest.raises(UserError, match=match):
        read_picture(server.root + "/endless")


def test_content_that_breaks_off(limits):
    broken = HEAD + b"Content-Length: 500\r\n\r\nhalf"
    content = {"/broken": lambda file: file.write(broken)}
    with serving(content) as server, pytest.raises(UserError, match="the server broke off"):
        read_picture(server.root + "/broken")
