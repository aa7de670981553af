"""What the benchmarks share: models, options, measurements in turn, ratios and the JSON files."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from hf_cifar.files import write_json
from hf_cifar.reporting.provenance import commit, hardware_facts, versions
from hf_cifar.training.precision import (
    fastest_precision,
    keep_freed_memory,
    prepare_device,
    set_weight_layout,
)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shape:
    """A model made from its config (random weights cost what real ones do), the side of its images
    in pixels, and a batch and a number of steps that take 2 CPU cores about ten seconds.
    """

    config: dict[str, Any]
    image_size: int
    batch: int
    steps: int


def vit(width: int, depth: int, heads: int, patch: int, size: int, mlp: int = 4) -> dict[str, Any]:
    """Return the config of a ViT. The widths and depths below are those of Dosovitskiy et al. 2021
    (B, H) and Touvron et al. 2021 (Ti, S).
    """
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp * width,
    }
    return {"model_type": "vit", "patch_size": patch, "image_size": size, **sizes}


RESNET18 = {
    "model_type": "resnet",
    "embedding_size": 64,
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}
MODELS = {
    "toy": Shape(vit(64, 2, 2, 4, 32, mlp=2), 32, 64, 200),
    "resnet-18": Shape(RESNET18, 96, 64, 40),
    "vit-ti16": Shape(vit(192, 12, 3, 16, 224), 224, 32, 20),
    "vit-s16": Shape(vit(384, 12, 6, 16, 224), 224, 16, 12),
    "vit-b16": Shape(vit(768, 12, 12, 16, 224), 224, 8, 8),
    "vit-h14": Shape(vit(1280, 32, 16, 14, 224), 224, 4, 4),
}


def parser(description: str | None, *, turns: int = 5) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--turns", type=int, default=turns, help="how often each side is measured, in turn"
    )
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options.add_argument(
        "--data",
        default="sample",
        metavar="DIR",
        help="CIFAR-10 in the Hub's layout; default: the sample",
    )
    options.add_argument(
        "--quick",
        action="store_true",
        help="the smallest sizes: shows that it runs, gives no figure to keep",
    )
    options.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the figures go; default: results/ beside the script",
    )
    return options


def start(args: argparse.Namespace) -> Any:
    """Choose the device, before torch looks for one, silence the libraries, and return the
    torch.device.
    """
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import datasets
    import torch
    import transformers

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: there is no CUDA device")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("hf_cifar").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # hf-cifar does it too, so no side may go without
    else:
        prepare_device(device, deterministic=False)
    return device


@contextmanager
def workplace() -> Iterator[Path]:
    """Yield a folder for runs and, unless the environment names others, caches; then remove it."""
    with tempfile.TemporaryDirectory(prefix="hf-cifar-bench-") as folder:
        for name in ("HF_CIFAR_CACHE", "HF_DATASETS_CACHE"):
            os.environ.setdefault(name, str(Path(folder) / name.lower()))
        yield Path(folder)


def model_keys(name: str) -> dict[str, Any]:
    """Return the recipe keys of a model: one of MODELS, or a folder, Hub id or `pypi:` name."""
    if name in MODELS:
        return {
            "from_scratch": True,
            "model_config": MODELS[name].config,
            "image_size": MODELS[name].image_size,
        }
    return {"model_name_or_path": name}


def recipe(folder: Path, data: str, model: str, **keys: Any) -> Any:
    """Return a checked Recipe that trains `model` on `data`, without evaluation or checkpoints in
    between.
    """
    import yaml

    from hf_cifar.recipe.load import load_recipe

    quiet = {
        "eval_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "validation_fraction": 0.0,
    }
    values = (
        quiet | {"dataset_name": data, "output_dir": str(folder / "run")} | model_keys(model) | keys
    )
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_recipe(str(path))


def settle(recipe: Any, precision: str, device: Any, frozen: bool = False) -> bool:
    """Write precision and memory layout into the recipe, so that every side uses the same. Return
    whether the precision is bf16.

    precision: fp32, bf16, or auto for what `hf-cifar train` would choose here. frozen: whether
    nothing trains.
    """
    from hf_cifar.models.load import load_backbone

    backbone = load_backbone(recipe, [str(i) for i in range(10)])
    model = backbone.model.to(device).requires_grad_(not frozen)
    bf16 = None if precision == "auto" else precision == "bf16"
    (recipe.training["bf16"], recipe.channels_last), _ = fastest_precision(
        model, backbone.image_size, device, bf16=bf16
    )
    return recipe.training["bf16"]


def bare_loop(recipe: Any, device: Any, batch: int, steps: int) -> float:
    """Return the images/s of a training loop with nothing but the recipe's model: one resident
    batch, fused AdamW, gradient clipping. The first quarter of the steps is left out.
    """
    import torch
    from torch.nn import functional as F

    from hf_cifar.models.load import load_backbone

    backbone, bf16 = load_backbone(recipe, [str(i) for i in range(10)]), recipe.training["bf16"]
    model: Any = backbone.model.to(device).train()
    set_weight_layout(model, device, bool(recipe.channels_last))
    pixels = torch.randn(batch, 3, backbone.image_size, backbone.image_size, device=device)
    if recipe.channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10

    def loss() -> Any:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return F.cross_entropy(model(pixel_values=pixels).logits.float(), labels)

    return batch * steps_per_second(model, loss, device, steps)


def steps_per_second(model: Any, loss: Callable[[], Any], device: Any, steps: int) -> float:
    """Return how many steps a second a loop trains with fused AdamW and gradient clipping. The
    first quarter of the steps is left out.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    began = 0.0
    for step in range(steps):
        if step == steps // 4:
            wait(device)
            began = time.perf_counter()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    wait(device)
    return (steps - steps // 4) / (time.perf_counter() - began)


def wait(device: Any) -> None:
    """Wait until the device has done what it was told."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    sides: Mapping[str, Callable[[], float]], turns: int, unit: str
) -> dict[str, list[float]]:
    """Return each side's figure of each turn. Every other turn goes backwards, so that a machine
    that grows slower or faster favours no side.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
            figures[name].append(sides[name]())
            line = f"turn {turn + 1}, {name}: {figures[name][-1]:.4g} {unit}"
            print(line, file=sys.stderr, flush=True)
    return figures


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum of the turns' own ratios."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def say(title: str, value: dict[str, float], goal: str = "") -> None:
    """Print what `ratio` returned."""
    print(
        f"{title}: {value['median']:.3f} ({value['min']:.3f} to {value['max']:.3f})"
        + (f"  goal {goal}" if goal else "")
    )


def keep(args: argparse.Namespace, device: Any, name: str, results: dict[str, Any]) -> None:
    """Write the figures, with everything that they depend on, as JSON.

    Those of a quick run are written only where --json says so.
    """
    path = args.json or (None if args.quick else HERE / "results" / f"{name}.json")
    if path is not None:
        write(path, name, device, results)


def machine_facts(device: Any) -> dict[str, Any]:
    """Return what figures depend on beside the code: machine, threads, load, versions, commit."""
    import torch

    return {
        "hardware": hardware_facts(device, 1),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": versions(),
        "commit": commit(),
    }


def write(path: Path, name: str, device: Any, results: dict[str, Any]) -> None:
    """Write the figures of the benchmark `name`, with everything that they depend on, as JSON."""
    from hf_cifar.recipe.recipe import public_name

    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    command += [public_name(word) if "/" in word else word for word in sys.argv[1:]]
    facts = {
        "benchmark": name,
        "command": " ".join(command),
        **machine_facts(device),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, facts | results)
    print(f"written: {path}", file=sys.stderr)


class ChildFailed(Exception):
    """A process of a benchmark failed or was stopped. The message says which, and how."""


def run(
    command: list[str], environment: dict[str, str] | None = None, timeout: float | None = None
) -> str:
    """Run a command and return what it printed. Raises ChildFailed.

    What it has started itself is stopped with it.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | (environment or {})
    )
    tree = psutil.Process(process.pid)
    try:
        text, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        with contextlib.suppress(psutil.Error):
            for descendant in [*tree.children(recursive=True), tree]:
                descendant.kill()
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ChildFailed(f"stopped after {timeout:.0f} s") from None
        raise
    if process.returncode:
        raise ChildFailed(f"exit code {process.returncode}")
    return text


def child(
    script: str,
    *words: Any,
    environment: dict[str, str] | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run one side of a benchmark as a process of its own.

    Return the JSON that it printed last, and `wall`, its seconds. Exits where it fails.
    """
    began = time.perf_counter()
    try:
        text = run([sys.executable, script, *map(str, words)], environment, timeout)
    except ChildFailed as error:
        sys.exit(f"{' '.join(map(str, words))}: {error}")
    return json.loads(text.splitlines()[-1]) | {"wall": time.perf_counter() - began}
