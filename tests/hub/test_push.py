"""Push and load through a Hub of real HTTP, with the real libraries in new processes and fresh
caches.

What is asserted about the network is read off the server's log: clients hide a server's errors
behind retries and caches.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.hub_fixtures import LABELS, PUSH, USER, Client, card
from helpers.hub_server import HubServer, git_oid

PUSHED = [
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
HOST = "brunhilde-7"  # of this process, where a test needs one that is not generic
PICTURE = """
from PIL import Image
picture = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 30).convert("RGB")
"""


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
    received = hub.received()
    assert {"model.safetensors", "README.md", "metrics.json", "recipe.yaml"} <= {
        where for where, _ in received
    }
    found = [(where, p.pattern) for where, data in received for p in patterns if p.search(data)]
    assert found == []
    assert not any(token in client.output for token in hub.users), "a token was printed"


# The server itself


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


# A run goes up and comes back


def test_full_run_goes_up_once_and_answers_through_pipeline_anywhere(
    hub: HubServer, client: Client, full_run: Path
) -> None:
    before = contents(full_run)
    first = client.push(full_run, named={"check": True})
    assert first["kind"] == "PushResult", first
    assert pushed(hub) == sorted(PUSHED)
    commits = hub.repo("alice/net").log()
    assert len(commits) == 2, "one commit on top of the empty repo"
    assert commits[0].oid == first["commit"]
    assert commits[0].message == (
        "full fine-tuning of google/vit-base-patch16-224: 95.07 % on uoft-cs/cifar10 test (95 % interval 94.63 to 95.48)"
    )
    said = "\n".join(first["said"])
    assert all(re.search(rf"\d k?B  {re.escape(path)}", said) for path in PUSHED)
    assert "pipeline answers alike on 3 images" in said
    assert {s.path for s in hub.seen("resolve")} >= {
        f"/alice/net/resolve/{first['commit']}/{path}" for path in PUSHED
    }
    assert contents(full_run) == before
    assert_nothing_private(hub, client, full_run)
    assert_no_token_elsewhere(hub)

    seen = len(hub.log)
    again = client.push(full_run)
    assert again["commit"] is None and "nothing changed" in again["said"][-1]
    assert {s.route for s in hub.log[seen:]} == {"whoami", "info", "tree"}

    # pipeline(model=id) in a process that never saw the run, then from its cache alone
    code = "from transformers import pipeline\n" + PICTURE
    code += (
        "answer(pipeline(sys.argv[1] or None, model=sys.argv[2], device='cpu', top_k=10)(picture))"
    )
    online = client(code, "", "alice/net", user=None, home="other")
    assert {a["label"] for a in online} == set(LABELS)
    seen = len(hub.log)
    assert (
        client(
            code, "image-classification", "alice/net", user=None, home="other", HF_HUB_OFFLINE="1"
        )
        == online
    )
    assert hub.log[seen:] == []


@pytest.mark.parametrize("edited", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_card_of_a_full_run_names_the_repo_it_went_to(
    hub: HubServer, client: Client, full_run: Path, own_copy: Callable[[Path], Path], edited: bool
) -> None:
    from hf_cifar.reporting.model_card import write_card

    run = own_copy(full_run)
    metrics = json.loads((run / "metrics.json").read_text()) | {
        "versions": {"torch": "2.14.1"},
        "hub_model_id": None,
    }
    (run / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (run / "plots/curves.png").rename(run / "plots/learning_curves.png")
    write_card(run)
    if edited:
        (run / "README.md").write_text((run / "README.md").read_text() + "\nMore by hand.\n")
    before = contents(run)
    assert client.push(run)["kind"] == "PushResult"
    head = hub.repo("alice/net").at("main")
    assert head is not None
    text = head.files["README.md"].data.decode()
    assert (
        'model="alice/net")' in text
        and '"./full"' not in text
        and "](plots/learning_curves.png)" in text
    )
    assert ("More by hand." in text) == edited
    assert json.loads(head.files["metrics.json"].data) == metrics | {"hub_model_id": "alice/net"}
    assert client.push(run)["commit"] is None and contents(run) == before


def test_lora_run_loads_as_adapter_and_merged(
    hub: HubServer, client: Client, lora_run: Path
) -> None:
    base = lora_run.parent / "base"
    hub.put("alice/base", {path.name: path.read_bytes() for path in base.iterdir()})
    result = client.push(lora_run)
    assert result["kind"] == "PushResult", result
    assert pushed(hub) == LORA_PUSHED
    code = """
import torch
from peft import PeftModel
from transformers import AutoImageProcessor, AutoModelForImageClassification
base = AutoModelForImageClassification.from_pretrained("alice/base")
adapted = PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained("alice/base"), "alice/net",
                                    subfolder="adapter").eval()
merged = AutoModelForImageClassification.from_pretrained("alice/net")
x = AutoImageProcessor.from_pretrained("alice/net")(picture, return_tensors="pt")
with torch.no_grad():
    logits = [model(**x).logits[0] for model in (base, adapted, merged)]
answer({"gap": (logits[1] - logits[2]).abs().max().item(), "moved": (logits[0] - logits[1]).abs().max().item(),
        "labels": [merged.config.id2label[i] for i in range(10)]})
"""
    loaded = client(PICTURE + code, user=None, home="other")
    assert loaded["labels"] == LABELS
    assert loaded["gap"] < 1e-3 < 0.1 < loaded["moved"]
    assert_nothing_private(hub, client, lora_run)
    assert_no_token_elsewhere(hub)


@pytest.mark.parametrize("fault", [None, pytest.param(500, marks=pytest.mark.slow), "reset"])
def test_through_xet_as_by_default(
    hub: HubServer, client: Client, lora_run: Path, fault: int | str | None
) -> None:
    hub.xet = True
    if fault is not None:
        hub.order("xorb", fault)
    result = client.push(lora_run, HF_HUB_DISABLE_XET="")
    assert result["kind"] == "PushResult", result
    head = hub.repo("alice/net").at("main")
    assert head is not None and pushed(hub) == LORA_PUSHED
    for path in LORA_PUSHED:
        assert head.files[path].data == (lora_run / path).read_bytes(), path
    assert hub.seen("put") == [] and [s.status for s in hub.seen("xorb")] == (
        [fault] if fault else []
    ) + [200]
    assert_no_token_elsewhere(hub)
    seen = len(hub.log)
    again = client.push(lora_run, HF_HUB_DISABLE_XET="")
    assert again["commit"] is None and {s.method for s in hub.log[seen:]} == {"GET"}


def test_a_hub_without_xet_is_told_so(hub: HubServer, client: Client, full_run: Path) -> None:
    failed = client.push(full_run, HF_HUB_DISABLE_XET="")
    assert (
        failed["kind"] == "PushError"
        and "HF_HUB_DISABLE_XET=1" in failed["text"]
        and "\n" not in failed["text"]
    )
    assert [s.status for s in hub.seen("xet-token")] == [404]
    assert client.push(full_run)["kind"] == "PushResult"


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
answer({"rows": {k: len(v) for k, v in data.items()}, "names": data["test"].features["label"].names,
        "size": data["train"][3]["img"].size, "pixel": data["train"][3]["img"].getpixel((0, 0)), "first": streamed["label"]})
"""
    told = client(code)
    assert told["rows"] == {"train": 20, "test": 10} and told["names"] == LABELS
    assert told["size"] == [32, 32] and told["pixel"] == [27, 50, 100] and told["first"] == 0
    assert_no_token_elsewhere(hub)


@pytest.mark.slow
def test_branch_private_and_what_a_run_no_longer_has(
    hub: HubServer, client: Client, lora_run: Path, own_copy: Callable[[Path], Path]
) -> None:
    run = own_copy(lora_run)
    client.push(run, named={"private": True, "revision": "v1"})
    repo = hub.repo("alice/net")
    assert repo.private and pushed(hub, branch="v1") == LORA_PUSHED and pushed(hub) == []

    shutil.rmtree(run / "adapter")
    (run / "plots/curves.png").unlink()
    metrics = json.loads((run / "metrics.json").read_text()) | {"method": "full"}
    (run / "metrics.json").write_text(json.dumps(metrics))
    seen = len(hub.log)
    second = client.push(run, named={"private": True, "revision": "v1"})
    assert second["changed"] == ["metrics.json"]
    assert pushed(hub, branch="v1") == sorted(set(PUSHED) - {"plots/curves.png"})
    assert not [s for s in hub.log[seen:] if s.route in ("create", "branch", "put")]
    assert len(repo.log("v1")) == 3

    hub.put("alice/open", {"README.md": b"mine\n"})
    refused = client.push(run, "alice/open", {"private": True})
    assert refused["kind"] == "UserError" and "exists and is public" in refused["text"]


def test_dry_run_writes_nothing(hub: HubServer, client: Client, full_run: Path) -> None:
    dry = client.push(full_run, named={"dry_run": True})
    assert dry["kind"] == "PushResult" and dry["commit"] is None
    assert "8 of 8 files would be committed" in dry["said"][-1]
    assert hub.repos == {} and {s.method for s in hub.log} == {"GET"}
    foreign = client.push(full_run, "bob/net", {"dry_run": True})
    assert foreign["kind"] == "UserError" and "no right to push to bob/net" in foreign["text"]


# Faults in passing: the push goes through, and the log shows how


@pytest.mark.parametrize(
    ("route", "kind", "calls"),
    [
        ("whoami", 500, 2),
        ("create", 503, 2),
        ("preupload", 502, 2),
        ("validate", 500, 2),
        ("commit", 500, 2),
        ("commit", "reset", 2),
        ("put", 500, 3),  # two large files beside the model, one of the three sent twice: see below
        ("put", "reset", 3),
        ("commit", 412, 2),
        ("commit", 409, 2),
        ("tree", 504, None),
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
    assert any("429" in line and "again in 1 s" in line for line in result["said"])


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
        ("batch", 404, 1, "", "404"),
        ("put", 400, 9, "", "400"),
        ("resolve", 404, 9, "", "404"),
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
    assert failed["kind"] == "PushError" and "no answer" in failed["text"]
    offline = client.push(full_run, HF_HUB_OFFLINE="1")
    assert offline["kind"] == "UserError" and "HF_HUB_OFFLINE" in offline["text"]
    assert hub.log == []


# Bad input: one line that says what to do


def test_tokens_and_names(hub: HubServer, client: Client, full_run: Path) -> None:
    code = """
def told(to="alice/net", token=None):
    if token: os.environ["HF_TOKEN"] = token
    else: os.environ.pop("HF_TOKEN", None)
    return push(sys.argv[1], to, check=False)
good = sys.argv[2]
answer({"none": told(), "bad": told(token="hf_" + "z" * 34), "foreign": told("bob/net", good),
        "names": [told(name, good) for name in ("net", "alice/", "a/b/c", "alice/n et", "alice/net@v1", "")]})
"""
    told = client(PUSH + code, full_run, hub.token(), user=None)
    assert all(
        t["kind"] == "UserError" and "\n" not in t["text"]
        for t in [told["none"], told["bad"], told["foreign"]]
    )
    assert "hf auth login" in told["none"]["text"] and "HF_TOKEN" in told["none"]["text"]
    assert "401" in told["bad"]["text"] and "hf auth login" in told["bad"]["text"]
    assert "no right to push to bob/net" in told["foreign"]["text"]
    assert [t["kind"] for t in told["names"]] == ["UserError"] * 6
    assert all("no repo name" in t["text"] for t in told["names"])
    assert [s.status for s in hub.seen("whoami")] == [401, 200]
    assert [s.status for s in hub.seen("create")] == [403]
    assert hub.repos == {} and "hf_" + "z" * 34 not in client.output


def test_rights_lost_on_the_way(hub: HubServer, client: Client, full_run: Path) -> None:
    hub.order("preupload", 403)
    hub.order("commit", 401)
    first, second = client.push(full_run), client.push(full_run)
    assert first["kind"] == "UserError" and "no right" in first["text"]
    assert second["kind"] == "UserError" and "401" in second["text"]
    assert pushed(hub) == []


def test_unfinished_runs(
    hub: HubServer, client: Client, lora_run: Path, own_copy: Callable[[Path], Path]
) -> None:
    run = own_copy(lora_run)
    code = """
run, told = Path(sys.argv[1]), []
for name in ("adapter/adapter_model.safetensors", "model.safetensors", "metrics.json"):
    (run / name).unlink()
    told.append(push(run, "alice/net")["text"])
answer([*told, push(run / "nowhere", "alice/net")["text"]])
"""
    adapter, model, metrics, nowhere = client(PUSH + code, run)
    assert "lacks adapter/adapter_model.safetensors;" in adapter
    assert "lacks model.safetensors, adapter/adapter_model.safetensors;" in model
    assert "lacks model.safetensors, metrics.json, adapter" in metrics
    assert "no such run folder" in nowhere
    assert hub.log == []


def _chunk(kind: bytes, data: bytes) -> bytes:
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("file", "text", "kind"),
    [
        ("README.md", "my token is hf_" + "Q" * 34, "a token"),
        ("recipe.yaml", "# into /data/people/x", "an absolute path"),
        ("recipe.yaml", "run_name: /home/someone/x", "an absolute path"),
        (
            "metrics.json",
            '{"test_accuracy": 0.9, "run": "C:\\\\Users\\\\someone"}',
            "an absolute path",
        ),
        (
            "metrics.json",
            '{"test_accuracy": 0.9, "run": "\\u002fUsers\\u002fsomeone"}',
            "an absolute path",
        ),
        ("README.md", f"trained by {USER.title()}.", "the user's name"),
        ("README.md", f"trained on {HOST}", "the host name"),
        ("README.md", "see {run}", "the run's own absolute path"),
        ("model.safetensors", "/home/someone/base", "an absolute path"),
        ("plots/curves.png", f"made by {USER}", "the user's name"),
        ("plots/curves.png tail", "hf_" + "Q" * 34, "a token"),
        (
            "adapter/adapter_config.json",
            "./weights/base",
            "base_model_name_or_path is a local path",
        ),
        ("adapter/adapter_config.json", "", "base_model_name_or_path is empty"),
    ],
)
def test_private_things_stay_here(
    lora_run: Path,
    own_copy: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    text: str,
    kind: str,
) -> None:
    from hf_cifar.errors import UserError
    from hf_cifar.hub import push as push_module

    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setattr(socket, "gethostname", lambda: f"{HOST}.example.org")
    run = own_copy(lora_run)
    name, _, tail = file.partition(" ")
    path = run / name
    text = text.format(run=run) if "{run}" in text else text
    if name.endswith(".json"):
        if name.startswith("adapter"):
            path.write_text(
                json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": text})
            )
        else:
            path.write_text(text)
    elif tail:
        path.write_bytes(path.read_bytes() + text.encode())
    elif name.endswith(".png"):
        png = path.read_bytes()
        path.write_bytes(png[:33] + _chunk(b"tEXt", b"Author\0" + text.encode()) + png[33:])
    elif name.endswith(".safetensors"):
        from safetensors.torch import load_file, save_file

        save_file(load_file(path), path, metadata={"format": "pt", "from": text})
    else:
        path.write_text(path.read_text() + text + "\n")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError) as caught:
        push_module.push(run, "alice/net", dry_run=True)
    line = str(caught.value)
    assert name in line and kind in line and "\n" not in line
    assert "hf_" + "Q" * 34 not in line


def test_ordinary_text_is_not_taken_for_private(
    lora_run: Path, own_copy: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_cifar.hub.privacy import scan

    run = own_copy(lora_run)
    text = (
        "See https://huggingface.co/docs/hub/model-cards and [issue](https://github.com/a/b/issues/1), "
        "`runs/home/x`, 3/4 of it, and/or, </td></tr>, images/s, root mean square, `AutoModel.from_pretrained('a/b')`."
    )
    (run / "README.md").write_text((run / "README.md").read_text() + text)
    monkeypatch.setenv("LOGNAME", "max")
    (run / "recipe.yaml").write_text("max_steps: 10\nlr_max: 3\n")
    scan(
        run,
        [
            "README.md",
            "recipe.yaml",
            "metrics.json",
            "model.safetensors",
            "plots/curves.png",
            "adapter/adapter_config.json",
        ],
    )


# Models to load


def test_model_names() -> None:
    from hf_cifar.errors import UserError
    from hf_cifar.models.inspect_repo import resolve_model

    assert resolve_model("user/name@rev") == ("user/name", "rev")
    assert resolve_model("user/name", "rev") == ("user/name", "rev")
    assert resolve_model("user/name@rev", "rev") == ("user/name", "rev")
    assert resolve_model("resnet") == ("resnet", None)
    for name, revision in (
        ("user/name@", None),
        ("user/name@a", "b"),
        ("./gone", None),
        ("a/b/c", None),
        ("a b", None),
    ):
        with pytest.raises(UserError):
            resolve_model(name, revision)


def test_a_local_folder_with_an_at_sign_stays(tmp_path: Path) -> None:
    from hf_cifar.models.inspect_repo import resolve_model

    (tmp_path / "net@2").mkdir()
    assert resolve_model(str(tmp_path / "net@2")) == (str(tmp_path / "net@2"), None)


def test_models_that_can_or_cannot_be_loaded(
    hub: HubServer, client: Client, full_run: Path
) -> None:
    import pickle

    import torch

    config = (full_run / "config.json").read_bytes()
    weights = (full_run / "model.safetensors").read_bytes()

    def changed(**keys: object) -> bytes:
        return json.dumps(json.loads(config) | keys).encode()

    plain = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, plain)
    evil = io.BytesIO()
    torch.save({"w": Path("x")}, evil)
    good = {"config.json": config, "model.safetensors": weights}
    hub.put("bob/good", good)
    hub.put("bob/gated", good, gated=True)
    hub.put("bob/private", good, private=True)
    hub.put("bob/backbone", {**good, "config.json": changed(architectures=["ViTModel"])})
    hub.put("bob/code", {**good, "config.json": changed(auto_map={"AutoModel": "modeling.Net"})})
    hub.put(
        "bob/code2",
        {**good, "preprocessor_config.json": b'{"auto_map": {"AutoImageProcessor": "p.P"}}'},
    )
    hub.put("bob/empty", {"README.md": b"soon\n"})
    hub.put("bob/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": weights})
    hub.put("bob/no-weights", {"config.json": config})
    hub.put("bob/broken", {**good, "config.json": b"{"})
    hub.put("bob/pickle", {"config.json": config, "pytorch_model.bin": plain.getvalue()})
    hub.put("bob/evil", {"config.json": config, "pytorch_model.bin": evil.getvalue()})
    hub.put(
        "bob/older", {"config.json": config, "pytorch_model.bin": pickle.dumps({"w": Path("x")})}
    )
    code = """
from hf_cifar.model_repo import check_model_repo
from hf_cifar.errors import UserError
def told(*args, **named):
    try: return check_model_repo(*args, **named)
    except UserError as error: return str(error)
answer({name: told(*name.partition("@")[::2]) for name in sys.argv[2:]} |
       {"any": told("bob/backbone", classifier=False), "folder": told(sys.argv[1]), "at": told("bob/good@nope")})
"""
    names = [
        "good",
        "gated",
        "private",
        "backbone",
        "code",
        "code2",
        "empty",
        "adapter",
        "no-weights",
        "broken",
    ]
    names = [f"bob/{name}" for name in [*names, "pickle", "evil", "older", "absent"]]
    told = client(code, full_run, *names, user=None)
    assert [name for name, line in told.items() if line is None] == [
        "bob/good",
        "bob/pickle",
        "any",
        "folder",
    ]
    says = {
        "bob/gated": "gated: ask for access",
        "bob/private": "does not exist or is private: check the name, or run `hf auth login`",
        "bob/absent": "does not exist or is private",
        "bob/backbone": "its architecture is ViTModel",
        "bob/code": "auto_map in config.json): trust_remote_code is refused",
        "bob/code2": "auto_map in preprocessor_config.json",
        "bob/empty": "no config.json",
        "bob/adapter": "only an adapter",
        "bob/no-weights": "no weights",
        "bob/broken": "config.json is not valid JSON",
        "bob/evil": "weights_only=True can't load",
        "bob/older": "weights_only=True can't load",
        "at": "no revision 'nope'",
    }
    assert {name: part in told[name] for name, part in says.items()} == dict.fromkeys(says, True)
    assert all("\n" not in line for line in told.values() if line)

    fine = "answer(told('bob/private'))"
    head = code[: code.index("answer(")]
    assert client(head + fine, user="bob") is None, "one's own login opens a private repo"
    seen = len(hub.log)
    offline = "answer([told('bob/good'), told('bob/never'), told('bob/gated')])"
    cached, never, gated = client(head + offline, user=None, HF_HUB_OFFLINE="1")
    assert "no Hub in reach and it is not in the cache" in cached, (
        "the check alone downloads no weights"
    )
    assert "no Hub in reach and it is not in the cache" in never and "no Hub in reach" in gated
    assert len(hub.log) == seen


def test_a_token_that_is_no_good_when_loading(hub: HubServer, client: Client) -> None:
    hub.put("bob/good", {"config.json": b"{}"})
    code = """
from hf_cifar.model_repo import check_model_repo
try: answer(check_model_repo("bob/good"))
except Exception as error: answer([type(error).__name__, str(error)])
"""
    kind, text = client(code, HF_TOKEN="hf_" + "z" * 34)
    assert kind == "UserError" and "401" in text and "hf auth login" in text
    assert {s.status for s in hub.log} == {401}


def test_card_of_the_fixture_is_a_card() -> None:
    from huggingface_hub import ModelCard

    results = ModelCard(card(0.9507, "a/b")).data.to_dict()["model-index"][0]["results"]
    assert results[0]["metrics"][0]["value"] == 0.9507
