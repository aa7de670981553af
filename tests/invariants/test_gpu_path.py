"""Training on a GPU, seen on a device that computes nothing (`helpers.fake_gpu`).

No step may wait for the device, no list of tensors may lie on two devices, and a batch may not cost
more operations than it does today: small models are bound by how many a step launches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import tiny_models

CHILD = Path(__file__).parents[1] / "helpers" / "children" / "train_on_fake_gpu.py"
CROP_BUDGET = 120  # operations on the device for a batch that is cropped, mirrored and resized
FULL_BUDGET = 420  # and with every other augmentation
AUGMIX_BUDGET = 360  # with three views of each image
AROUND_COMPILED = 0  # beside the compiled graph
GATHER_BUDGET = 4  # for a batch of hidden states that lie on the device
EVERYTHING: dict[str, Any] = {
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "auto_augment": "randaugment",
    "random_erasing": 0.5,
}
AUGMIX: dict[str, Any] = {"auto_augment": "augmix", "consistency_weight": 12}
CASES: dict[str, dict[str, Any]] = {
    **{f"full {family}": {"family": family} for family in tiny_models.FAMILIES},
    **{
        f"{method} {family}": {"family": family, "method": method}
        for method in ("lora", "partial", "linear")
        for family in ("vit", "resnet")
    },
    "partial vit, cached": {"family": "vit", "method": "partial", "feature_views": 1},
    "full resnet, average": {"family": "resnet", "ema_decay": 0.9},
    "lora resnet, average": {"family": "resnet", "method": "lora", "ema_decay": 0.9},
    "full vit, everything": {"family": "vit", **EVERYTHING},
    "full vit, compiled": {"family": "vit", "max_steps": 100_000, **EVERYTHING},
    "full resnet, augmix": {"family": "resnet", **AUGMIX},
    "full vit, augmix, compiled": {"family": "vit", "max_steps": 100_000, **AUGMIX},
    "full vit, muon": {"family": "vit", "muon": True, "layer_decay": 0.7, "head_epochs": 1.0},
    "full vit, accumulated": {
        "family": "vit",
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "label_smoothing_factor": 0.1,
    },
    "full resnet, sizes": {
        "family": "resnet",
        "num_train_epochs": 3,
        "max_steps": -1,
        "per_device_train_batch_size": 48,
        "image_size_schedule": [[0, 16], [1, 32]],
    },
}


def look_at(cases: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Return what the device saw of each case, trained in a process of its own."""
    (folder / "cases.json").write_text(json.dumps(cases))
    tests = CHILD.parents[2]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
        "HF_CIFAR_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    child = subprocess.run(
        [sys.executable, str(CHILD), str(folder / "cases.json"), str(folder / "report.json")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-200:] + child.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


def operations(seen: dict[str, Any], phase: str) -> float:
    """Return the operations of one step in a phase."""
    return sum(seen["kernels"].get(phase, {}).values())


def budget(name: str) -> int:
    """Return how many operations the data path of a case may have in one step."""
    if name == "full vit, everything":
        return FULL_BUDGET
    if name == "full resnet, augmix":
        return AUGMIX_BUDGET
    if name in ("full vit, compiled", "full vit, augmix, compiled"):
        return AROUND_COMPILED
    if name == "partial vit, cached":
        return GATHER_BUDGET
    return CROP_BUDGET * CASES[name].get("gradient_accumulation_steps", 1)


# One test, so that one process trains all cases wherever the tests are spread over several.
def test_training_on_a_gpu(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    cases = {
        name: {"model_name_or_path": str(tiny(keys["family"]))}
        | {key: value for key, value in keys.items() if key != "family"}
        for name, keys in CASES.items()
    }
    report = look_at(cases, tmp_path)
    controls = report.pop("controls")
    assert len(set(controls["waits"])) == 7, controls["waits"]
    assert len(controls["mixed"]) == 1 and "_foreach_lerp_" in controls["mixed"][0]
    assert controls["parameters_stay_and_buffers_do_not"]
    problems = []
    for name, seen in report.items():
        trains = CASES[name].get("method") != "linear"  # which is solved, without steps
        if seen["error"] is not None:
            problems.append(f"{name}: {seen['error']}")
        elif seen["steps"] != (3 if trains else 0):
            problems.append(f"{name}: {seen['steps']} steps")
        problems += [f"{name}: {line}" for line in dict.fromkeys(seen["waits"] + seen["mixed"])]
        count = operations(seen, "data path")
        if count > budget(name) or (trains and not seen["kernels"]):
            problems.append(f"{name}: {count} operations of the data path, {budget(name)} allowed")
    assert not problems, "\n".join(problems)
    assert set(report) == set(CASES)
    assert operations(report["full vit, compiled"], "compiled") > 200
