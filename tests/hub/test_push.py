"""A run is pushed and loaded through real HTTP, with the real libraries in new processes and fresh
caches.

What is asserted about the network is read in the server's log, because clients hide the errors of a
server behind retries and caches.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.hub_checks import (
    LORA_PUSHED,
    PUSHED,
    assert_no_token_elsewhere,
    assert_nothing_private,
    contents,
    pushed,
)
from helpers.hub_fixtures import LABELS, Client
from helpers.hub_server import HubServer
from huggingface_hub import parse_eval_result_entries

PICTURE = """
from PIL import Image
picture = Image.effect_mandelbrot((32, 32), (-2, -1, 1, 1), 30).convert("RGB")
"""


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
        "google/vit-base-patch16-224 with all of its weights fine-tuned:"
        " 95.07 % on uoft-cs/cifar10 test (95 % interval 94.63 to 95.48)"
    )
    results = yaml.safe_load(commits[0].files[".eval_results/hf-cifar.yaml"].data)
    (entry,) = parse_eval_result_entries(results)
    assert (entry.dataset_id, entry.value) == ("uoft-cs/cifar10", 0.9507)
    text = "\n".join(first["lines"])
    assert all(re.search(rf"\d k?B  {re.escape(path)}", text) for path in PUSHED)
    assert "`pipeline` gives the same answers to 3 images" in text
    assert {s.path for s in hub.seen("resolve")} >= {
        f"/alice/net/resolve/{first['commit']}/{path}" for path in PUSHED
    }
    assert contents(full_run) == before
    assert_nothing_private(hub, client, full_run)
    assert_no_token_elsewhere(hub)

    seen = len(hub.log)
    again = client.push(full_run)
    assert again["commit"] is None and "nothing changed" in again["lines"][-1]
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
    metrics = json.loads((run / "metrics.json").read_text()) | {"hub_model_id": None}
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
adapted = AutoModelForImageClassification.from_pretrained("alice/base")
adapted = PeftModel.from_pretrained(adapted, "alice/net", subfolder="adapter").eval()
merged = AutoModelForImageClassification.from_pretrained("alice/net")
x = AutoImageProcessor.from_pretrained("alice/net")(picture, return_tensors="pt")
with torch.no_grad():
    logits = [model(**x).logits[0] for model in (base, adapted, merged)]
answer({"gap": (logits[1] - logits[2]).abs().max().item(),
        "moved": (logits[0] - logits[1]).abs().max().item(),
        "labels": [merged.config.id2label[i] for i in range(10)]})
"""
    loaded = client(PICTURE + code, user=None, home="other")
    assert loaded["labels"] == LABELS
    assert loaded["gap"] < 1e-3 < 0.1 < loaded["moved"]
    assert_nothing_private(hub, client, lora_run)
    assert_no_token_elsewhere(hub)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(None, marks=pytest.mark.slow),
        pytest.param(500, marks=pytest.mark.slow),
        "reset",
    ],
)
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
    for path in (path for path in LORA_PUSHED if (lora_run / path).is_file()):
        assert head.files[path].data == (lora_run / path).read_bytes(), path
    assert hub.seen("put") == [] and [s.status for s in hub.seen("xorb")] == (
        [fault] if fault else []
    ) + [200]
    assert_no_token_elsewhere(hub)
    seen = len(hub.log)
    again = client.push(lora_run, HF_HUB_DISABLE_XET="")
    assert again["commit"] is None and {s.method for s in hub.log[seen:]} == {"GET"}


def test_a_hub_without_xet_is_reported(hub: HubServer, client: Client, full_run: Path) -> None:
    failed = client.push(full_run, HF_HUB_DISABLE_XET="")
    assert (
        failed["kind"] == "PushError"
        and "HF_HUB_DISABLE_XET=1" in failed["text"]
        and "\n" not in failed["text"]
    )
    assert [s.status for s in hub.seen("xet-token")] == [404]
    assert client.push(full_run)["kind"] == "PushResult"


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
    metrics = json.loads((run / "metrics.json").read_text()) | {"adapter": False}
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
    assert "9 of 9 files would be committed" in dry["lines"][-1]
    assert hub.repos == {} and {s.method for s in hub.log} == {"GET"}
    foreign = client.push(full_run, "bob/net", {"dry_run": True})
    assert foreign["kind"] == "UserError" and "no right to push to bob/net" in foreign["text"]
