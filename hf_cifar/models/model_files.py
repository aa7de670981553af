"""The checked files of a model on this machine, and the only ones that a library gets to see."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hf_cifar.errors import HfCifarError, UserError
from hf_cifar.text import visible

# Where weights lie: a single file, or an index of several.
INDEXES = {
    "model.safetensors": "model.safetensors.index.json",
    "pytorch_model.bin": "pytorch_model.bin.index.json",
}
# What `hf-cifar calibrate` adds to a model whose config.json then has the key `reject`.
KNOWN_PICTURES = "known_pictures.safetensors"
FLOAT_OR_INDEX = {"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"}  # safetensors' names


@dataclass(frozen=True)
class ModelFiles:
    """The checked files of a model.

    repo: the folder or repo, as transformers names it. name: how messages call it, with the
    revision. folder: where the files lie. commit: the Hub's, or None. configs: the contents of the
    JSON files by name. weights: names of the files with the weights; an index comes first.
    """

    repo: str
    name: str
    folder: Path
    commit: str | None
    configs: dict[str, dict[str, Any]]
    weights: list[str]

    @contextlib.contextmanager
    def for_library(self, problem: str) -> Iterator[Path]:
        """Lend a library a folder with nothing but the checked files.

        Beside them transformers looks for adapters, sharded checkpoints and further configs, which
        nothing has checked. What it raises becomes UserError, with `problem` after the name.
        """
        with tempfile.TemporaryDirectory(prefix="hf-cifar-model-") as folder:
            for file, content in self.configs.items():
                Path(folder, file).write_text(json.dumps(content))
            for file in self.weights:
                Path(folder, file).symlink_to((self.folder / file).resolve())
            with library_errors(self.name, problem, folder):
                yield Path(folder)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights by name. Raises UserError for damaged files."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file in self.weights:
            if file.endswith(".safetensors"):
                shapes |= safetensors_shapes(self.folder / file, f"{self.name}: {file}")
            elif file.endswith(".bin"):
                shapes |= check_pickle(self.folder / file, f"{self.name}: {file}")
        return shapes


def indexed_files(index: dict[str, Any], suffix: str, where: str) -> list[str]:
    """Return the names of the files that an index of weights lists.

    suffix: of the files. where: how messages begin.
    Raises UserError for names that lead out of the folder, and for files of another kind.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{where}: weight_map must be an object that names files")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(suffix):
            raise UserError(f"{where}: weight_map must name {suffix} files beside it, got {file!r}")
    return sorted(set(weight_map.values()))


def safetensors_shapes(path: Path, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file by name. Raises UserError for a damaged file, and for
    quantised weights.
    """
    shapes = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            for name in names:
                part = file.get_slice(name)
                if part.get_dtype() not in FLOAT_OR_INDEX:
                    raise UserError(
                        f"{where}: {name} is quantised ({part.get_dtype()}); name the model that"
                        " was not quantised"
                    )
                shapes[name] = tuple(part.get_shape())
    except UserError:
        raise
    except Exception as error:  # safetensors exports its own type under no stable name
        raise UserError(
            f"{where} is damaged ({_describe(error)}); fetch or save the model again"
        ) from None
    return shapes


def check_pickle(path: Path, where: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a pickle by name. Raises UserError if `weights_only=True`
    can't load it, or if it does not hold what its size says.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type for entry in archive.infolist()):
                    raise UserError(f"{where} is compressed, as torch.save never writes")
        with warnings.catch_warnings():  # of pickle protocols that it reads all the same
            warnings.simplefilter("ignore")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception:  # a broken pickle raises nearly anything
        raise UserError(
            f"{where} is a pickle that weights_only=True can't load, so it may run code; convert it"
            " where it is trusted: load it there and save_pretrained() writes model.safetensors"
        ) from None
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{where} holds no weights by name; convert it to safetensors first")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise UserError(f"{where}: {name!r} is no tensor; convert the weights to safetensors")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise UserError(f"{where}: {name!r} is larger than what the file holds")
    return {str(name): tuple(tensor.shape) for name, tensor in tensors.items()}


@contextlib.contextmanager
def library_errors(name: str, problem: str, folder: str = "") -> Iterator[None]:
    """Turn what a library raises over a model's files into UserError.

    Configs that fit nothing fail in each family's own way, with any type of exception.

    folder: a temporary folder, for which messages name the model.
    """
    try:
        yield
    except HfCifarError:
        raise
    except Exception as error:
        reason = _describe(error)
        if folder:
            reason = reason.replace(folder, name)
        raise UserError(f"{name}: {problem} ({reason})") from None


def _describe(error: Exception) -> str:
    """Return the type and the text of an exception in one line."""
    text = visible(" ".join(str(error).split()), 200)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
