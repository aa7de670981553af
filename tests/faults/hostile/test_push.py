"""A push without a network, a push that is stopped, and files that must never be pushed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.hub_checks import PUSHED, pushed
from helpers.hub_fixtures import STAYS_HERE, Client
from helpers.hub_server import HubServer
from helpers.silence import silent_server

from hf_cifar.network import check_connection


def start(client: Client, *words: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "hf_cifar", *words],
        env=client.environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_nothing_answers() -> None:
    lines: list[str] = []
    with silent_server() as url:
        begin = time.monotonic()
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1.*no answer within 10 s"):
            check_connection(url, lines.append)
        assert 9 < time.monotonic() - begin < 12
    assert lines == ["connecting to 127.0.0.1 ... (no answer after 3 s)"]


def test_a_proxy_is_the_first_to_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1, port 9: Connection refused"):
        check_connection("https://huggingface.co")
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(ConnectionError, match="localhost, port 9"):
        check_connection("https://localhost:9")


@pytest.mark.slow
def test_a_push_says_what_it_waits_for_and_gives_up(client: Client, full_run: Path) -> None:
    with silent_server() as url:
        push = start(client, "push", str(full_run), "--to", "alice/net", HF_ENDPOINT=url)
        assert push.stdout is not None
        for line in push.stdout:
            if "connecting to 127.0.0.1" in line:
                break
        begin = time.monotonic()
        _, err = push.communicate(timeout=60)
        assert time.monotonic() - begin < 15  # 7 s of silence and the end of the process
    assert push.returncode == 1 and err.count("\n") == 1
    assert "no answer within 10 s" in err and "repeat with: hf-cifar push" in err


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "temporary"
    folder.mkdir()
    yield folder


@pytest.mark.parametrize("route", ["commit", "resolve"])
def test_a_stopped_push_leaves_no_temporary_folder(
    hub: HubServer, client: Client, full_run: Path, temporary: Path, route: str
) -> None:
    """Stopped while the Hub is slow with the commit, or while the commit is read back."""
    hub.order(route, "slow", times=9, wait=3.0)
    words = ["push", str(full_run), "--to", "alice/net"]
    push = start(client, *words, TMPDIR=str(temporary))
    deadline = time.monotonic() + 100
    while not hub.seen(route):
        assert time.monotonic() < deadline and push.poll() is None, push.communicate()
        time.sleep(0.05)
    if route == "resolve":
        assert list(temporary.iterdir()), "the cache that the commit is read back into"
    push.send_signal(signal.SIGTERM)
    _, err = push.communicate(timeout=60)
    assert push.returncode == 128 + signal.SIGTERM
    assert err == "hf-cifar: stopped by SIGTERM\n"
    assert not list(temporary.iterdir())


def test_only_the_allow_list_is_pushed(
    hub: HubServer, client: Client, full_run: Path, own_copy: Callable[[Path], Path]
) -> None:
    run = own_copy(full_run)
    names = [".env", "notes.md", "README.md.bak", "plots/deep/x.png", "plots/x.jpg"]
    names += ["adapter.json", "id_rsa", "metrics.json.tmp", "model-00001-of-00002.safetensors"]
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(STAYS_HERE)
    assert STAYS_HERE in (run / ".hf_cifar.json").read_bytes()  # by the fixture
    result = client.push(run)
    assert result["kind"] == "PushResult", result
    assert pushed(hub) == sorted(PUSHED)
    assert not [where for where, data in hub.received() if re.search(STAYS_HERE, data)]


def test_a_fifo_in_place_of_a_file_is_not_opened(
    client: Client, full_run: Path, own_copy: Callable[[Path], Path]
) -> None:
    run = own_copy(full_run)
    os.mkfifo(run / "plots" / "pipe.png")
    (run / "README.md").unlink()
    os.mkfifo(run / "README.md")
    result = client.push(run)
    assert result["kind"] == "UserError" and "it lacks README.md" in result["text"]
