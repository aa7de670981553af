"""One thread, a cache of its own and no network for every test; tiny models of each family."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

HOME = Path(
    tempfile.mkdtemp(prefix="hf-cifar-tests-")
)  # before the libraries are imported: they read these once
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

pytest_plugins = ["helpers.hub_fixtures"]


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_small() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny("vit")`: the folder of a tiny pretrained model of this family (`tiny_models.FAMILIES`),
    not to be changed.
    """
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            from helpers import tiny_models

            made[family] = tiny_models.save(family, tmp_path_factory.mktemp("models") / family)
        return made[family]

    return folder
