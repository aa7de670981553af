"""Faults of network and server: passing ones are outlived, the others end in one line."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.hub_checks import PUSHED, contents, pushed
from helpers.hub_fixtures import Client
from helpers.hub_server import HubServer

# Faults in passing: the push goes through, and the log shows how


@pytest.mark.parametrize(
    ("route", "kind", "calls"),
    [
        ("create", 503, 2),
        ("commit", 412, 2),
        ("put", "reset", 3),  # two large files beside the model, one of the three sent twice: below
        pytest.param("whoami", 500, 2, marks=pytest.mark.slow),
        pytest.param("preupload", 502, 2, marks=pytest.mark.slow),
        pytest.param("validate", 500, 2, marks=pytest.mark.slow),
        pytest.param("commit", 500, 2, marks=pytest.mark.slow),
        pytest.param("commit", "reset", 2, marks=pytest.mark.slow),
        pytest.param("put", 500, 3, marks=pytest.mark.slow),
        pytest.param("commit", 409, 2, marks=pytest.mark.slow),
        pytest.param("tree", 504, None, marks=pytest.mark.slow),
    ],
)
def test_a_fault_in_passing_is_outlived(
    hub: HubServer, client: Client, full_run: Path, route: str, kind: int | str, calls: int | None
) -> None:
    if route == "tree":  # asked for only where there is a repo
        hub.create("alice/net")
        calls = 2
    more = (
        {"path": hashlib.sha256((full_run / "model.safetensors").read_bytes()).hexdigest()}
        if route == "put"
        else {}
    )
    hub.order(route, kind, 1, **more)
    result = client.push(full_run)
    assert result["kind"] == "PushResult", result
    assert pushed(hub) == sorted(PUSHED)
    assert len(hub.repo("alice/net").log()) == 2, "one commit"
    seen = hub.seen(route)
    if route == "put":
        statuses = [s.status for s in hub.seen("put", more["path"])]
        assert statuses == [kind, 200], "the model again"
        others = [s.path for s in seen if more["path"] not in s.path]
        assert len(others) == len(set(others)) == 2, "and nothing else again"
        if kind == "reset":
            broken, whole = hub.seen("put", more["path"])
            assert 0 < len(broken.body) < len(whole.body)
    else:
        assert [s.status for s in seen][:2] == [kind, 200] and len(seen) == calls
        assert len(hub.seen("put")) == 3, "every large file once"
    assert all(fault.times == 0 for fault in hub.faults)


def test_retry_after_is_honoured(hub: HubServer, client: Client, full_run: Path) -> None:
    hub.order("commit", 429, 1, headers={"Retry-After": "1"})
    result = client.push(full_run)
    assert result["kind"] == "PushResult", result
    refused, accepted = hub.seen("commit")
    assert (refused.status, accepted.status) == (429, 200)
    assert accepted.at - refused.at >= 1
    assert any("429" in line and "again in 1 s" in line for line in result["lines"])


def test_a_long_retry_after_is_not_waited_out(
    hub: HubServer, client: Client, full_run: Path
) -> None:
    hub.order("whoami", 429, 1, headers={"Retry-After": "3600"})
    result = client.push(full_run)
    assert result["kind"] == "PushError" and "429" in result["text"] and len(hub.log) == 1


def test_waits_grow(hub: HubServer, client: Client, full_run: Path) -> None:
    hub.order("create", 500, 3)
    assert client.push(full_run)["kind"] == "PushResult"
    times = [s.at for s in hub.seen("create")]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(waits) == 3
    assert all(waited >= wanted for waited, wanted in zip(waits, (0.05, 0.1, 0.2), strict=True))


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    hub: HubServer, client: Client, full_run: Path
) -> None:
    hub.order("commit", "lost")
    result = client.push(full_run)
    assert result["kind"] == "PushResult", result
    assert [s.status for s in hub.seen("commit")] == ["lost", 412]
    assert len(hub.repo("alice/net").log()) == 2
    head = hub.repo("alice/net").at("main")
    assert head is not None and result["commit"] == head.oid


def test_a_slow_hub_is_waited_for(hub: HubServer, client: Client, full_run: Path) -> None:
    hub.order("put", "slow", 1, wait=1.0)
    hub.order("commit", "slow", 1, wait=1.0)
    assert client.push(full_run)["kind"] == "PushResult"
    assert len(hub.seen("commit")) == 1 and len(hub.seen("put")) == 3


def test_a_repo_being_made_elsewhere(hub: HubServer, client: Client, full_run: Path) -> None:
    busy = json.dumps({"error": "Cannot create repo: another conflicting operation is in progress"})
    hub.order("create", 409, 1, body=busy)
    assert client.push(full_run)["kind"] == "PushResult"
    assert [s.status for s in hub.seen("create")] == [409, 200]


# Faults that stay: one line, the run whole, and the next push takes up where this one ended


def test_a_hub_that_stays_down_then_the_push_repeated(
    hub: HubServer, client: Client, full_run: Path, own_copy: Callable[[Path], Path]
) -> None:
    run = own_copy(full_run)
    before = contents(run)
    hub.order("commit", 500, 99)
    failed = client.push(run)
    assert failed["kind"] == "PushError" and "\n" not in failed["text"]
    assert "500" in failed["text"]
    assert failed["text"].endswith(f"repeat with: hf-cifar push {run} --to alice/net --no-check")
    assert len(hub.seen("commit")) == 5 and pushed(hub) == []
    assert contents(run) == before

    hub.faults.clear()
    seen = len(hub.log)
    assert client.push(run)["kind"] == "PushResult"
    assert pushed(hub) == sorted(PUSHED)
    assert not [s for s in hub.log[seen:] if s.route in ("put", "create")], (
        "what was uploaded is not uploaded again"
    )


@pytest.mark.parametrize(
    ("route", "kind", "times", "path", "says"),
    [
        ("commit", 412, 2, "", "412"),
        pytest.param("batch", 404, 1, "", "404", marks=pytest.mark.slow),
        pytest.param("put", 400, 9, "", "400", marks=pytest.mark.slow),
        pytest.param("resolve", 404, 9, "", "404", marks=pytest.mark.slow),
        ("storage", "corrupt", 1, "", "another checksum"),
        (
            "resolve",
            "corrupt",
            1,
            "/config.json",
            "config.json came back from the Hub with another checksum",
        ),
    ],
)
def test_a_fault_that_stays_is_one_line(
    hub: HubServer,
    client: Client,
    full_run: Path,
    route: str,
    kind: int | str,
    times: int,
    path: str,
    says: str,
) -> None:
    hub.order(route, kind, times, path=path)
    failed = client.push(full_run, named={"check": True})
    assert failed["kind"] == "PushError" and says in failed["text"] and "\n" not in failed["text"]
    assert f"repeat with: hf-cifar push {full_run} --to alice/net" in failed["text"]
    if kind != "corrupt":
        assert {s.status for s in hub.seen(route)} == {kind}
    else:
        assert pushed(hub) == sorted(PUSHED), "it is the way back that failed"


def test_no_hub_in_reach(hub: HubServer, client: Client, full_run: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    failed = client.push(full_run, HF_ENDPOINT=url)
    assert failed["kind"] == "PushError" and "no connection to 127.0.0.1" in failed["text"]
    offline = client.push(full_run, HF_HUB_OFFLINE="1")
    assert offline["kind"] == "UserError" and "HF_HUB_OFFLINE" in offline["text"]
    assert hub.log == []
