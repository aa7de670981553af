"""The container and CI use the README's own lines."""

import re
import stat
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_image_installs_as_the_readme_says_and_is_not_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert 'pip install ".[quickstart]"' in (ROOT / "README.md").read_text()
    assert any(re.search(r'pip install (--\S+ )*"\.\[quickstart\]"', line) for line in lines)
    assert 'ENTRYPOINT ["hf-cifar"]' in lines
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["user"] and lines.index("USER user") < lines.index('ENTRYPOINT ["hf-cifar"]')


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "make test" in script.read_text().splitlines()
    assert re.search(r"^make test\b", (ROOT / "README.md").read_text(), re.MULTILINE)
