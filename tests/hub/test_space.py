"""A run's page as a Space: pushed through real HTTP, and as a folder that runs by itself."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("pytorch_grad_cam")

import yaml
from gradio_client import Client as PageClient
from gradio_client import handle_file
from helpers.browser import free_port, wait_for_server
from helpers.hub_checks import assert_no_token_elsewhere, contents
from helpers.hub_fixtures import STAYS_HERE, USER, Client
from helpers.hub_server import HubServer
from helpers.rejecting import reject_everything
from transformers import pipeline

from hf_cifar.cli import main

ROOT = Path(__file__).parents[2]
PUSH = """
from hf_cifar.hub.space import push_space
run = Path(sys.argv[1])
first = outcome(push_space, run, "alice/page")
again = outcome(push_space, run, "alice/page", check=False)
foreign = outcome(push_space, run, "bob/page", dry_run=True)
answer([first, again, foreign])
"""
FILES = [
    "README.md",
    "app.py",
    "heat_maps.py",
    "model/config.json",
    "model/model.safetensors",
    "model/preprocessor_config.json",
    "page.json",
    "requirements.txt",
    "stranger_scores.py",
]
RUN_SPACE = ROOT / "tests" / "helpers" / "children" / "run_space.py"


def test_a_space_goes_up_once_and_holds_nothing_private(
    hub: HubServer, client: Client, full_run: Path
) -> None:
    before = contents(full_run)
    first, again, foreign = client(PUSH, full_run)
    assert first["kind"] == "PushResult", first
    assert pushed_space(hub) == FILES
    assert "9 files have the checksums that were sent" in first["lines"][-1]
    assert ("model", "alice/page") not in hub.repos and len(space_log(hub)) == 2
    assert contents(full_run) == before
    assert_no_token_elsewhere(hub)
    words = [USER, str(full_run), str(Path.home()) + "/", str(client.folder), str(ROOT)]
    patterns = [re.compile(re.escape(word).encode()) for word in words]
    patterns += [re.compile(rb"hf_[A-Za-z0-9]{20,}"), re.compile(rb"/(home|root|Users)/")]
    patterns.append(re.compile(re.escape(STAYS_HERE)))
    received = hub.received()
    leaks = [(where, p.pattern) for where, data in received for p in patterns if p.search(data)]
    assert leaks == []

    assert again["commit"] is None and "nothing changed" in again["lines"][-1]
    assert foreign["kind"] == "UserError" and "no right to push to bob/page" in foreign["text"]


def space_log(hub: HubServer) -> list[Any]:
    return hub.repo("alice/page", "space").log()


def pushed_space(hub: HubServer) -> list[str]:
    return sorted(set(space_log(hub)[0].files) - {".gitattributes"})


@pytest.fixture
def space(full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of a Space, written without the Hub."""
    folder = tmp_path / "space"
    words = ["push", str(full_run), "--space", "alice/page", "--dry-run", str(folder)]
    assert main.run(words) == 0
    assert "pip install -r requirements.txt" in capsys.readouterr().out
    return folder


def test_the_folder_says_what_it_needs(space: Path, full_run: Path) -> None:
    assert sorted(contents(space)) == FILES
    _, front, text = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = yaml.safe_load(front)
    assert settings["sdk"] == "gradio" and settings["sdk_version"] == version("gradio")
    assert (space / settings["app_file"]).is_file()
    assert settings["python_version"] == ".".join(map(str, sys.version_info[:2]))
    assert settings["models"] == ["alice/net", "google/vit-base-patch16-224"]
    assert "95.07 %" in text and "alice/page" not in text
    pins = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    assert pins["gradio"] == version("gradio") and "timm" not in pins
    assert pins["torch"] == version("torch").partition("+")[0]
    own = {path.stem for path in space.glob("*.py")}
    packages = {"gradio", "numpy", "PIL", "torch", "safetensors", "transformers", "cv2"}
    packages |= {"pytorch_grad_cam"}
    for path in space.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            tops = {str(name).partition(".")[0] for name in names}
            assert tops <= packages | own | sys.stdlib_module_names, path


@pytest.mark.slow
def test_the_folder_runs_as_it_is(
    full_run: Path, own_copy: Callable[[Path], Path], tmp_path: Path
) -> None:
    run = own_copy(full_run)
    reject_everything(run)
    folder = tmp_path / "space"
    words = ["push", str(run), "--space", "alice/page", "--dry-run", str(folder)]
    assert main.run(words) == 0
    port = free_port()
    process = subprocess.Popen([sys.executable, str(RUN_SPACE), str(port)], cwd=folder)
    try:
        wait_for_server(port)
        page = PageClient(f"http://127.0.0.1:{port}", verbose=False, httpx_kwargs={"timeout": 60})
        picture = ROOT / "docs" / "ship.png"
        message, labels, heat_map = page.predict(handle_file(picture), api_name="/classify")
    finally:
        process.terminate()
        process.wait(timeout=60)
    expected = pipeline("image-classification", model=str(run), top_k=5)(str(picture))
    given = {entry["label"]: entry["confidence"] for entry in labels["confidences"]}
    assert given == pytest.approx({a["label"]: a["score"] for a in expected}, abs=1e-6)
    assert message.startswith("## none of these") and heat_map is not None


def test_what_is_refused(
    full_run: Path, own_copy: Callable[[Path], Path], tmp_path: Path, capfd: Any, monkeypatch: Any
) -> None:
    run = own_copy(full_run)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")

    def refused(*words: Any) -> str:
        capfd.readouterr()
        assert main.run([str(word) for word in words]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1, err
        return err

    to = ("push", run, "--space", "alice/page")
    assert "it holds files already; name a new folder" in refused(*to, "--dry-run", full)
    assert "is no repo name" in refused("push", run, "--space", "page", "--dry-run", tmp_path / "x")
    assert "for --space alone" in refused("push", run, "--to", "a/b", "--dry-run", tmp_path / "x")
    assert "--onnx goes with --to" in refused(*to, "--onnx")
    (run / "metrics.json").write_text(
        json.dumps(json.loads((run / "metrics.json").read_text()) | {"run_name": "/home/me/run"})
    )
    line = refused(*to, "--dry-run", tmp_path / "x")
    assert "holds an absolute path" in line and not (tmp_path / "x").exists()
    (run / "metrics.json").unlink()
    assert "is not a finished run" in refused(*to, "--dry-run", tmp_path / "x")
    monkeypatch.setitem(sys.modules, "gradio", None)  # Python's mark of what is absent
    assert "pip install 'hf-cifar[demo]'" in refused(*to, "--dry-run", tmp_path / "x")
