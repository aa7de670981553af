"""What a push has put on the stand-in Hub, and what it must not have sent there."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from pathlib import Path

from helpers.hub_fixtures import STAYS_HERE, USER, Client
from helpers.hub_server import HubServer

PUSHED = [
    ".eval_results/hf-cifar.yaml",
    *(
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "plots/confusion.png",
        "plots/curves.png",
    ),
    *("preprocessor_config.json", "recipe.yaml"),
]
LORA_PUSHED = sorted([*PUSHED, "adapter/adapter_config.json", "adapter/adapter_model.safetensors"])


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def pushed(hub: HubServer, repo: str = "alice/net", branch: str = "main") -> list[str]:
    head = hub.repo(repo).at(branch)
    assert head is not None
    return sorted(set(head.files) - {".gitattributes"})


def assert_no_token_elsewhere(hub: HubServer) -> None:
    storage = hub.storage.removeprefix("http://")
    there = [seen for seen in hub.log if seen.host == storage]
    assert there, "nothing went to the other origin, so nothing is shown"
    assert [
        seen.path for seen in there if (seen.authorization or "").startswith("Bearer hf_")
    ] == []
    sent = [json.dumps(seen.headers) + seen.path for seen in there]
    assert not any(token in text for token in hub.users for text in sent)


def assert_nothing_private(hub: HubServer, client: Client, run: Path) -> None:
    """Reads every byte that the server received, but for the Authorization header that the token
    belongs in.
    """
    words = [USER, str(run), str(Path.home()) + "/", str(client.folder)]
    patterns = [re.compile(re.escape(word).encode()) for word in words]
    if len(socket.gethostname()) > 3:  # a shorter name stands in random bytes
        patterns.append(re.compile(re.escape(socket.gethostname()).encode()))
    patterns += [re.compile(rb"hf_[A-Za-z0-9]{20,}"), re.compile(rb"/(home|root|Users)/")]
    patterns.append(re.compile(re.escape(STAYS_HERE)))
    received = hub.received()
    assert {"model.safetensors", "README.md", "metrics.json", "recipe.yaml"} <= {
        where for where, _ in received
    }
    leaks = [(where, p.pattern) for where, data in received for p in patterns if p.search(data)]
    assert leaks == []
    assert not any(token in client.output for token in hub.users), "a token was printed"
