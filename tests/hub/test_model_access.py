"""Models on the Hub that can or can't be loaded, and why."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from helpers.hub_fixtures import Client
from helpers.hub_server import HubServer

PROBLEM = """
from hf_cifar.errors import UserError
from hf_cifar.models.inspect_repo import fetch_model

def problem(name, revision=None, classifier=True):
    try:
        fetch_model(name, revision or None, classifier=classifier)
    except UserError as error:
        return str(error)
"""


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
    names = ["good", "gated", "private", "backbone", "code", "code2", "empty", "adapter"]
    names += ["no-weights", "broken", "pickle", "evil", "older", "absent"]
    code = """
answer({name: problem(*name.partition("@")[::2]) for name in sys.argv[2:]} | {
    "any": problem("bob/backbone", classifier=False),
    "folder": problem(sys.argv[1]),
    "at": problem("bob/good", "nope"),
})
"""
    problems = client(PROBLEM + code, full_run, *[f"bob/{name}" for name in names], user=None)
    fine = [name for name, problem in problems.items() if problem is None]
    assert fine == ["bob/good", "bob/pickle", "any", "folder"]
    parts = {
        "bob/gated": "gated: ask for access",
        "bob/private": "does not exist or is private: check the name, or run `hf auth login`",
        "bob/absent": "does not exist or is private",
        "bob/backbone": "its architecture is ViTModel",
        "bob/code": "config.json",
        "bob/code2": "preprocessor_config.json",
        "bob/empty": "no config.json",
        "bob/adapter": "only an adapter",
        "bob/no-weights": "no weights",
        "bob/broken": "config.json",
        "bob/evil": "pytorch_model.bin",
        "bob/older": "pytorch_model.bin",
        "at": "no revision 'nope'",
    }
    assert all(part in problems[name] for name, part in parts.items()), problems
    assert all("auto_map" in problems[f"bob/{name}"] for name in ("code", "code2"))
    assert all("\n" not in problem for problem in problems.values() if problem)

    login = client(PROBLEM + "answer(problem('bob/private'))", user="bob")
    assert login is None, "one's own login opens a private repo"
    seen = len(hub.log)
    code = "answer([problem(name) for name in ('bob/good', 'bob/never', 'bob/gated')])"
    good, never, gated = client(PROBLEM + code, user=None, HF_HUB_OFFLINE="1")
    assert good is None, "it was downloaded above"
    assert "no Hub in reach and it is not in the cache" in never and "no Hub in reach" in gated
    assert len(hub.log) == seen


def test_a_token_that_is_no_good_when_loading(hub: HubServer, client: Client) -> None:
    hub.put("bob/good", {"config.json": b"{}"})
    text = client(PROBLEM + "answer(problem('bob/good'))", HF_TOKEN="hf_" + "z" * 34)
    assert "401" in text and "hf auth login" in text
    assert {s.status for s in hub.log} == {401}
