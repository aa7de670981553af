"""One thread, a cache of its own and no network for every test; tiny models of each family."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Set before the libraries are imported, which read these once.
HOME = Path(tempfile.mkdtemp(prefix="hf-cifar-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HOME": str(HOME / "hf"),
    "HF_CIFAR_CACHE": str(HOME / "cache"),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRACKIO_DISABLE": "1",
    "MPLBACKEND": "agg",
    "TQDM_DISABLE": "1",
}
for name in ("HF_TOKEN", "HF_ENDPOINT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
    os.environ.pop(name, None)

import pytest  # noqa: E402

if TYPE_CHECKING:
    from hf_cifar.runs.run import Run

pytest_plugins = ["helpers.hub_fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test, so that no core waits for it at the end."""
    items.sort(key=lambda item: item.name != "test_every_block_that_needs_nothing")


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_no_progress_bars() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tiny("vit"): the folder of a tiny pretrained model of a family in `tiny_models.FAMILIES`; a
    test must not change it.
    """
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            from helpers import tiny_models

            folders[family] = tiny_models.save(family, tmp_path_factory.mktemp("models") / family)
        return folders[family]

    return folder


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Run]:
    """train("run", model_folder, key=value, ...): a tiny run in tmp_path/run; or fresh=True."""
    from helpers.runs import train_into

    def into(name: str, model: Path, **keys: Any) -> Run:
        return train_into(tmp_path / name, model, **keys)

    return into
