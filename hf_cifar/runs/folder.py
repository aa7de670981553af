"""A run's folder: locked while it trains, claimed by one recipe, cleared by --fresh."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hf_cifar.errors import UserError
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe

log = logging.getLogger(__name__)
# Keys that may differ between two starts of one run: they say where it runs or goes, not what it
# computes.
FREE_KEYS = {
    "output_dir",
    "bf16",
    "channels_last",
    "disable_tqdm",
    "use_cpu",
    "data_path",
    "per_device_eval_batch_size",
    "save_total_limit",
    "dataloader_num_workers",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "license",
}
LEFT_BY_A_RUN = (
    "recipe.yaml*",
    "checkpoints",
    "model*.safetensors*",
    "config.json",
    "preprocessor_config.json",
    "adapter",
    "metrics.json*",
    "predictions.parquet",
    "plots",
    "README.md",
)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """The run folder, made and locked. Raises UserError where it can't be made or somebody else
    trains in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: {folder}: {error.strerror}; name another folder") from None
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"output_dir: {folder}: another process is training here; wait for it or name another folder"
        ) from None
    try:
        yield
    finally:
        (folder / ".lock").unlink(
            missing_ok=True
        )  # while it is held: later it may be another process's
        lock.release()


def start_over(folder: Path) -> None:
    """Remove what a run leaves, and nothing else. Raises UserError where the folder holds other
    things and no run.
    """
    if not (folder / "recipe.yaml").is_file() and any(p.name != ".lock" for p in folder.iterdir()):
        raise UserError(
            f"output_dir: {folder} is not empty and holds no run, so --fresh removes nothing; name another folder"
        )
    for path in sorted(p for pattern in LEFT_BY_A_RUN for p in folder.glob(pattern)):
        log.warning("--fresh: removing %s", path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def claim_folder(folder: Path, recipe: Recipe, fresh: bool) -> Recipe:
    """Write the recipe into the folder, or, where one stands there, make sure that it is the same
    run and go on with its choices. Raises UserError that lists the keys that differ.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        others = [p.name for p in folder.iterdir() if p.name not in (".lock", "recipe.yaml.part")]
        if others and not fresh:
            raise UserError(
                f"output_dir: {folder} is not empty and holds no run ({others[0]}); name another folder"
            )
        return recipe
    before = load_recipe(str(path))
    old, new = before.to_dict(), recipe.to_dict()
    differ = [k for k in {**old, **new} if k not in FREE_KEYS and old.get(k) != new.get(k)]
    if differ:
        parts = ", ".join(f"{k} ({old.get(k)} there, {new.get(k)} here)" for k in differ[:5])
        raise UserError(
            f"output_dir: {folder} holds a run of another recipe: {parts}; name another output_dir or start over with --fresh"
        )
    if recipe.training["bf16"] is None:
        recipe.training["bf16"] = before.training["bf16"]
    if recipe.channels_last is None:
        recipe.channels_last = before.channels_last
    return recipe
