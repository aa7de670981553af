"""Bad input for a push is one line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from helpers.hub_checks import pushed
from helpers.hub_fixtures import PUSH, Client
from helpers.hub_server import HubServer


def test_tokens_and_names(hub: HubServer, client: Client, full_run: Path) -> None:
    code = """
def outcome_of(to="alice/net", token=None):
    if token: os.environ["HF_TOKEN"] = token
    else: os.environ.pop("HF_TOKEN", None)
    return push(sys.argv[1], to, check=False)
good = sys.argv[2]
names = ("net", "alice/", "a/b/c", "alice/n et", "alice/net@v1", "")
answer({"none": outcome_of(), "bad": outcome_of(token="hf_" + "z" * 34),
        "foreign": outcome_of("bob/net", good), "names": [outcome_of(n, good) for n in names]})
"""
    outcomes = client(PUSH + code, full_run, hub.token(), user=None)
    names = outcomes.pop("names")
    for outcome in [*outcomes.values(), *names]:
        assert outcome["kind"] == "UserError" and "\n" not in outcome["text"]
    none, bad = outcomes["none"]["text"], outcomes["bad"]["text"]
    assert "hf auth login" in none and "HF_TOKEN" in none
    assert "401" in bad and "hf auth login" in bad
    assert "no right to push to bob/net" in outcomes["foreign"]["text"]
    assert len(names) == 6 and all("no repo name" in outcome["text"] for outcome in names)
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
run, texts = Path(sys.argv[1]), []
for name in ("adapter/adapter_model.safetensors", "model.safetensors", "metrics.json"):
    (run / name).unlink()
    texts.append(push(run, "alice/net")["text"])
answer([*texts, push(run / "nowhere", "alice/net")["text"]])
"""
    adapter, model, metrics, nowhere = client(PUSH + code, run)
    assert "lacks adapter/adapter_model.safetensors;" in adapter
    assert "lacks model.safetensors, adapter/adapter_model.safetensors;" in model
    assert "lacks model.safetensors, metrics.json, adapter" in metrics
    assert "no such run folder" in nowhere
    assert hub.log == []
