"""The stand-in Hub makes git's ids, and serves datasets and cards as the Hub does."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest
from helpers.hub_checks import assert_no_token_elsewhere
from helpers.hub_fixtures import LABELS, Client, card
from helpers.hub_server import HubServer, git_oid


def test_the_server_makes_the_ids_that_git_makes(hub: HubServer, tmp_path: Path) -> None:
    try:
        subprocess.run(["git", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git")
    files = {"a.txt": b"one\n", "dir/b.txt": b"two\n", "dir.txt": b"three\n", "dir/deep/c": b"four"}
    repo = hub.put("alice/net", files)
    (tmp_path / ".gitattributes").write_bytes(repo.log()[0].files[".gitattributes"].data)
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for command in (["init", "-q"], ["-c", "core.safecrlf=false", "add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    tree = subprocess.run(
        ["git", "write-tree"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.strip()
    head = repo.log()[0]
    body = f"tree {tree}\nparent {head.parent}\nauthor hub <hub@example.org> 1700000001 +0000\n"
    body += "committer hub <hub@example.org> 1700000001 +0000\n\nseed\n"
    assert head.oid == git_oid("commit", body.encode())


def test_dataset_loads_from_the_hub(hub: HubServer, client: Client) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from PIL import Image

    def rows(count: int) -> bytes:
        images = []
        for index in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (index * 9, 50, 100)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table(
            {"img": images, "label": pa.array([i % 10 for i in range(count)], pa.int64())}
        )
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()

    front = {
        "configs": [
            {
                "config_name": "plain_text",
                "data_files": [
                    {"split": s, "path": f"plain_text/{s}-*"} for s in ("train", "test")
                ],
                "default": True,
            }
        ],
        "dataset_info": {
            "config_name": "plain_text",
            "features": [
                {"name": "img", "dtype": "image"},
                {"name": "label", "dtype": {"class_label": {"names": dict(enumerate(LABELS))}}},
            ],
            "splits": [{"name": "train", "num_examples": 20}, {"name": "test", "num_examples": 10}],
        },
    }
    files = {
        f"plain_text/{split}-00000-of-00001.parquet": rows(n)
        for split, n in (("train", 20), ("test", 10))
    }
    hub.put(
        "uoft-cs/cifar10",
        {**files, "README.md": f"---\n{json.dumps(front)}\n---\n".encode()},
        "dataset",
    )
    code = """
from datasets import load_dataset
data = load_dataset("uoft-cs/cifar10")
streamed = next(iter(load_dataset("uoft-cs/cifar10", split="test", streaming=True)))
picture = data["train"][3]["img"]
answer({"rows": {k: len(v) for k, v in data.items()}, "first": streamed["label"],
        "names": data["test"].features["label"].names,
        "size": picture.size, "pixel": picture.getpixel((0, 0))})
"""
    loaded = client(code)
    assert loaded["rows"] == {"train": 20, "test": 10} and loaded["names"] == LABELS
    assert loaded["size"] == [32, 32] and loaded["pixel"] == [27, 50, 100] and loaded["first"] == 0
    assert_no_token_elsewhere(hub)


def test_card_of_the_fixture_is_a_card() -> None:
    from huggingface_hub import ModelCard

    results = ModelCard(card(0.9507, "a/b")).data.to_dict()["model-index"][0]["results"]
    assert results[0]["metrics"][0]["value"] == 0.9507
