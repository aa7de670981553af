"""Counts the work that makes the data path fast: a batch is one call, an image is decoded once, no
step waits for the device, and a frozen backbone sees an image once.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.decoding import count_decoded
from helpers.runs import without_drawing
from helpers.waits import HostWaits, WaitsOfSteps, fake_cuda
from helpers.watching import images_seen, trainer_callbacks
from transformers import BitImageProcessor, TrainerCallback, ViTImageProcessor
from transformers.image_processing_backends import TorchvisionBackend

from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data import image_store
from hf_cifar.data.batches import ImageBatches
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs.run import train_recipe

TOY = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(autouse=True)
def _no_drawing():
    with without_drawing():
        yield


@pytest.fixture
def make_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """make_recipe(key=value, ...): a recipe for a tiny ViT, with a cache of its own."""
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))

    def make(**keys: Any) -> Recipe:
        values = {
            "from_scratch": True,
            "model_config": TOY,
            "dataset_name": "sample",
            "validation_fraction": 0.0,
            "output_dir": str(tmp_path / "run"),
            "eval_strategy": "no",
            "save_strategy": "no",
            "bf16": False,
            "disable_tqdm": True,
            "use_cpu": True,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | keys))
        return load_recipe(str(path))

    return make


def record_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Let `owner.name` append the first argument of each call to the list that is returned."""
    calls: list[Any] = []
    original = getattr(owner, name)

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args[0] if args else None)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, recording)
    return calls


class AtTrainBegin(TrainerCallback):
    """Call `action()` when training begins."""

    def __init__(self, action: Any) -> None:
        self.action = action

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action()


def test_a_batch_is_one_call_and_an_image_is_decoded_once(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(
        max_train_samples=96,
        max_eval_samples=40,
        num_train_epochs=2,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=20,
    )
    fetched = record_calls(monkeypatch, ImageBatches, "__getitems__")
    gathered = record_calls(monkeypatch, image_store.ImageTable, "batch")
    one_by_one = record_calls(monkeypatch, TorchvisionBackend, "process_image")
    monkeypatch.setattr(
        ImageBatches, "__getitem__", lambda self, i: pytest.fail("an image was asked for alone")
    )
    decoded = count_decoded(monkeypatch)
    with trainer_callbacks(AtTrainBegin(one_by_one.clear)):  # not what set-up tried
        train_recipe(recipe)
    train_batches, test_batches = 2 * 3, math.ceil(40 / 20)
    assert len(fetched) == len(gathered) == train_batches + test_batches and not one_by_one
    assert sorted(map(len, fetched)) == sorted([32] * 6 + [20] * 2)
    assert len(decoded) == 2000 + 1000  # all of the sample, once
    train_recipe(recipe, fresh=True)
    assert len(decoded) == 2000 + 1000  # and never again


def test_waits_are_seen() -> None:
    with HostWaits() as waits:
        bool(torch.ones(()) > 0)
        torch.ones(3).tolist()
        torch.ones(1).item()
        assert not torch.ones(2).isnan().any()
        torch.ones(1).cpu()
    assert waits.seen == [
        "_local_scalar_dense",
        "tolist",
        "_local_scalar_dense",
        "_local_scalar_dense",
        "cpu",
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"method": "lora", "ema_decay": 0.9},
        {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "image_size_schedule": [[0, 16], [1, 32]]},
        {"auto_augment": "trivialaugment", "random_erasing": 0.5},
    ],
)
def test_no_step_waits_for_the_device(keys: dict, make_recipe: Any) -> None:
    watcher = WaitsOfSteps()
    recipe = make_recipe(
        max_train_samples=128,
        max_eval_samples=10,
        max_steps=6,
        per_device_train_batch_size=8,
        logging_steps=100,
        **keys,
    )
    with trainer_callbacks(watcher):
        train_recipe(recipe)
    assert watcher.steps == [1, 2, 3, 4, 5, 6]
    assert watcher.seen == []


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessor(resample=3, size={"height": 32, "width": 32}),
        BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
    ],
)
def test_transforms_copy_nothing_to_the_device(processor: Any) -> None:
    """On fake CUDA tensors, so that a copy between host and device shows without a GPU."""
    transforms = Transforms(processor, 32, scale=(0.5, 1.0), flip=0.5, seed=3)
    assert transforms.whole
    with fake_cuda():
        images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="cuda")
        index = torch.arange(4, device="cuda")
        # From the first call on, the processor keeps its mean and deviation on the device.
        transforms.train(images, index, index)
        with HostWaits() as waits:
            assert transforms.train(images, index, index).shape == (4, 3, 32, 32)
            transforms.evaluate(images)
    assert waits.seen == []


def test_a_frozen_backbone_sees_each_image_once(make_recipe: Any) -> None:
    recipe = make_recipe(
        method="linear",
        validation_fraction=0.1,
        max_train_samples=70,
        max_eval_samples=30,
        per_device_eval_batch_size=32,
    )
    with images_seen() as seen:
        train_recipe(recipe)
    # One image counts the FLOPs; the others are train, validation and test.
    assert sorted(count for count in seen if count > 1) == sorted([32, 32, 6, 30, 30])
    with images_seen() as seen:
        train_recipe(recipe, fresh=True)
    assert not [count for count in seen if count > 1]
