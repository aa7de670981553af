"""What the benchmarks share: the models, the turns, the ratio with its spread, and the JSON that is
kept.
"""

from __future__ import annotations

import argparse
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

from hf_cifar.reporting.provenance import commit, hardware_facts, versions
from hf_cifar.training.precision import fastest_precision, keep_freed_memory

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shape:
    """A model from its config alone (random weights cost what real ones do), its side in pixels,
    and a batch and a number of steps that take 2 CPU cores about ten seconds.
    """

    config: dict[str, Any]
    image_size: int
    batch: int
    steps: int


def vit(width: int, depth: int, heads: int, patch: int, size: int, mlp: int = 4) -> dict[str, Any]:
    """Widths and depths of Dosovitskiy et al. 2021 (B, L, H) and Touvron et al. 2021 (Ti, S)."""
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
    """The options that every benchmark has."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--turns", type=int, default=turns, help="how often the sides are measured, in turn"
    )
    found.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    found.add_argument(
        "--data",
        default="sample",
        metavar="DIR",
        help="CIFAR-10 in the Hub's layout; default: the sample",
    )
    found.add_argument(
        "--quick",
        action="store_true",
        help="the smallest sizes: whether it runs, no figure to keep",
    )
    found.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the figures go; default: results/ beside the script",
    )
    return found


def start(args: argparse.Namespace) -> Any:
    """Choose the device (before torch looks for one) and quieten the libraries. Returns the
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
        keep_freed_memory()  # hf-cifar does; a side without it would lose for that alone
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
    """A checked Recipe that trains `model` on `data` with nothing on the side: no evaluation or
    checkpoint while it trains.
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
    """Write precision (auto: what `hf-cifar train` would choose here) and memory layout into the
    recipe, so that every side takes the same; whether it is bf16.
    """
    from hf_cifar.models.load import load_backbone

    backbone = load_backbone(recipe, [str(i) for i in range(10)])
    model = backbone.model.to(device).requires_grad_(not frozen)
    told = None if precision == "auto" else precision == "bf16"
    (recipe.training["bf16"], recipe.channels_last), _ = fastest_precision(
        model, backbone.image_size, device, bf16=told
    )
    return recipe.training["bf16"]


def bare_loop(recipe: Any, device: Any, batch: int, steps: int) -> float:
    """Images a second of the training loop that has nothing but the recipe's model: one resident
    batch, fused AdamW, gradient clipping; the first quarter of the steps is left out.
    """
    import torch
    from torch.nn import functional as F

    from hf_cifar.models.load import load_backbone

    backbone, bf16 = load_backbone(recipe, [str(i) for i in range(10)]), recipe.training["bf16"]
    model = backbone.model.to(device).train()
    pixels = torch.randn(batch, 3, backbone.image_size, backbone.image_size, device=device)
    if recipe.channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    began = 0.0
    for step in range(steps):
        if step == steps // 4:
            wait(device)
            began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(pixel_values=pixels).logits.float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    wait(device)
    return batch * (steps - steps // 4) / (time.perf_counter() - began)


def wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    sides: Mapping[str, Callable[[], float]], turns: int, unit: str
) -> dict[str, list[float]]:
    """Each side's figure of each turn; every other turn goes backwards, so that a drift of the
    machine favours nobody.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
            found[name].append(sides[name]())
            print(
                f"turn {turn + 1}, {name}: {found[name][-1]:.4g} {unit}",
                file=sys.stderr,
                flush=True,
            )
    return found


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median, least and most of the turns' own ratios."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def say(title: str, value: dict[str, float], goal: str = "") -> None:
    print(
        f"{title}: {value['median']:.3f} ({value['min']:.3f} to {value['max']:.3f})"
        + (f"  goal {goal}" if goal else "")
    )


def keep(args: argparse.Namespace, device: Any, name: str, results: dict[str, Any]) -> None:
    """Write the figures with everything that they depend on. A quick run is written only where
    --json says so.
    """
    from hf_cifar.recipe.recipe import public_name

    path = args.json or (None if args.quick else HERE / "results" / f"{name}.json")
    if path is None:
        return
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    command += [public_name(word) if "/" in word else word for word in sys.argv[1:]]
    facts = {
        "benchmark": name,
        "command": " ".join(command),
        "hardware": hardware_facts(device, 1),
        "load_average": os.getloadavg()[0],
        "versions": versions(),
        "commit": commit(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts | results, indent=1) + "\n")
    print(f"written: {path}", file=sys.stderr)


def child(
    script: str,
    *words: Any,
    environment: dict[str, str] | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run a benchmark's one side as a process of its own; what it printed last, as JSON, and its
    `wall` seconds.
    """
    began = time.perf_counter()
    command = [sys.executable, script, *map(str, words)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}: exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1]) | {"wall": time.perf_counter() - began}
