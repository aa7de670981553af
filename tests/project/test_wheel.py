"""The built wheel, away from the checkout: recipes, sample and card template come along, and a
training works.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the package, as `pip install` lays it out from the wheel."""
    out = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(out / "site")
    return out / "site"


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(installed), "HF_CIFAR_CACHE": str(cwd / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "hf_cifar", *words], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_carries_what_the_checkout_has(installed: Path) -> None:
    package = installed / "hf_cifar"
    for folder, kind in (("recipes", "*.yaml"), ("model_cards", "*.j2")):
        here = {p.relative_to(ROOT / folder) for p in (ROOT / folder).rglob(kind)}
        assert here and here == {
            p.relative_to(package / folder) for p in (package / folder).rglob(kind)
        }
    assert sum(p.stat().st_size for p in (package / "sample").rglob("*.parquet")) < 7e6


def test_trains_from_any_folder(installed: Path, tmp_path: Path) -> None:
    listed = run(installed, tmp_path, "recipes", "list")
    assert listed.returncode == 0 and "vit_huge_14/lora" in listed.stdout
    recipe = tmp_path / "tiny.yaml"
    config = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    }
    keys = {
        "from_scratch": True,
        "model_config": config,
        "image_size": 32,
        "dataset_name": "sample",
        "max_train_samples": 64,
        "max_eval_samples": 20,
        "validation_fraction": 0.1,
        "bf16": False,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "disable_tqdm": True,
    }
    recipe.write_text(json.dumps(keys))
    done = run(installed, tmp_path, "train", str(recipe))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny" / "README.md").read_text().startswith("---\n")
    assert json.loads((tmp_path / "runs" / "tiny" / "metrics.json").read_text())["commit"] is None
