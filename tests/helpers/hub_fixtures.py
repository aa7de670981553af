"""Fixtures around the stand-in Hub: the server, a client process with a fresh cache, and finished
run folders.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.hub_server import HubServer

ROOT = Path(__file__).parents[2]
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
USER = "wilhelmina"  # the login name that client processes see; it must not be in what they send
STAYS_HERE = b"stays here "  # content of the files that must not be sent
PRELUDE = """
import json, os, sys
from pathlib import Path

def answer(value):
    print("\\n@" + json.dumps(value))

def outcome(call, *args, **named):
    "Return the class of a push's result, or of its error, and the lines that it said."
    from hf_cifar.hub.upload import PushOptions

    lines = []
    try:
        result = call(*args, PushOptions(say=lines.append, **named))
        values = {name: getattr(result, name, None) for name in ("commit", "changed")}
        return {"kind": type(result).__name__, "lines": lines, **values}
    except Exception as error:
        return {"kind": type(error).__name__, "text": str(error), "lines": lines}
"""
PUSH = """
from hf_cifar.hub.push import push as push_run

def push(run, to, **named):
    return outcome(push_run, Path(run), to, waits=(0.05, 0.1, 0.2, 0.4), **named)
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


class Client:
    """Runs code in new processes that know only the stand-in Hub. They share a cache, unless `home`
    names another.
    """

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.folder, self.output = hub, folder, ""

    def environment(
        self, user: str | None = "alice", home: str = "home", **more: str
    ) -> dict[str, str]:
        of_libraries = ("HF_", "HUGGING_FACE", "TRANSFORMERS_")
        variables = {k: v for k, v in os.environ.items() if not k.startswith(of_libraries)}
        python_path = os.pathsep.join([variables.get("PYTHONPATH", ""), str(ROOT)])
        variables |= {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "LOGNAME": USER,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": python_path.strip(os.pathsep),
            "no_proxy": "*",
        }
        if user is not None:
            variables["HF_TOKEN"] = self.hub.token(user)
        return {k: v for k, v in (variables | more).items() if v != ""}

    def __call__(self, code: str, *args: Any, timeout: float = 120, **more: Any) -> Any:
        """Run `code` with `sys.argv[1:]` = `args` and return what it hands to `answer(...)`."""
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + code, *map(str, args)],
            env=self.environment(**more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        self.output += done.stdout + done.stderr
        answers = [line[1:] for line in done.stdout.splitlines() if line.startswith("@")]
        assert done.returncode == 0 and answers, done.stdout + done.stderr
        return json.loads(answers[-1])

    def push(
        self, run: Path, to: str = "alice/net", named: dict[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        """Push once, without reading back unless `named` says so."""
        named = {"check": False, **(named or {})}
        code = "answer(push(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3])))"
        return self(PUSH + code, run, to, json.dumps(named), **more)


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(hub, tmp_path)


def card(accuracy: float, base: str, **dataset: str) -> str:
    about = {"type": "uoft-cs/cifar10", "name": "CIFAR-10", "split": "test", **dataset}
    front = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "base_model": base,
        "model-index": [
            {
                "name": "net",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": about,
                        "metrics": [
                            {"type": "accuracy", "value": accuracy, "name": "Test accuracy"}
                        ],
                    }
                ],
            }
        ],
    }
    return f"---\n{json.dumps(front, indent=1)}\n---\n\n# net\n\nA small net for a test.\n"


def tiny_model(seed: int = 0, labels: list[str] = LABELS) -> Any:
    """A ViT of 30,000 parameters for 32-pixel images."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    names = dict(enumerate(labels))
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(50)  # answers that differ from image to image
    return model


def save_model(model: Any, folder: Path) -> None:
    from transformers import ViTImageProcessor

    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def finish(folder: Path, base: str, method: str, description: str) -> Path:
    """Write what a finished run has beside its model, and files that must stay here.

    The run is to be pushed to alice/net.
    """
    from PIL import Image

    metrics = {
        "test_accuracy": 0.9507,
        "test_accuracy_ci95": [0.9463, 0.9548],
        "dataset": "uoft-cs/cifar10",
        "labels": LABELS,
        "base_model": base,
        "method": method,
        "method_description": description,
        "adapter": method == "lora",
        "hub_model_id": "alice/net",
    }
    (folder / "README.md").write_text(card(0.9507, base))
    (folder / "recipe.yaml").write_text(
        f"model_name_or_path: {base}\noutput_dir: runs/{folder.name}\nseed: 1\n"
    )
    (folder / "plots").mkdir()
    for name, color in (("confusion", "teal"), ("curves", "plum")):
        Image.new("RGB", (8, 8), color).save(folder / "plots" / f"{name}.png")
    for path in (
        "checkpoints/step-10/optimizer.pt",
        "logs/events.out",
        "training_args.bin",
        "predictions.parquet",
        "plots/.thumbnail.png",
        "plots/notes.txt",
        ".hf_cifar.json",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(STAYS_HERE * 10)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    return folder


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "full"
    save_model(tiny_model(), folder)
    base = "google/vit-base-patch16-224"
    return finish(folder, base, "full", "with all of its weights fine-tuned")


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run on alice/base, whose own folder lies beside it as `base`."""
    import torch
    from peft import LoraConfig, get_peft_model

    place = tmp_path_factory.mktemp("runs")
    base = tiny_model(seed=1)
    save_model(base, place / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = get_peft_model(base, config)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    model.peft_config["default"].base_model_name_or_path = "alice/base"
    model.save_pretrained(str(place / "lora" / "adapter"), save_embedding_layers=False)
    save_model(model.merge_and_unload(), place / "lora")
    return finish(place / "lora", "alice/base", "lora", "fine-tuned with LoRA")


@pytest.fixture
def own_copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A run folder that a test may change."""

    def copy(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "runs" / run.name))

    return copy
