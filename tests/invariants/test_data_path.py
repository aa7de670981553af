"""Guards what makes the data path fast, counted and not timed: a batch is one call, an image is
decoded once, no step waits for the device, and a frozen backbone sees an image once.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BitImageProcessor, ViTImageProcessor
from transformers.image_processing_backends import TorchvisionBackend

from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data import image_store
from hf_cifar.data.batches import ImageBatches
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs import run, stages
from hf_cifar.training.progress import Speed

TOY = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def make_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """make_recipe(key=value, ...): a recipe for a tiny ViT on the sample, with a cache of its own."""
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


def count(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Let `owner.name` note the second positional argument of each call, and go on as before."""
    calls: list[Any] = []
    original = getattr(owner, name)

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args[0] if args else None)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, noting)
    return calls


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
    fetched = count(monkeypatch, ImageBatches, "__getitems__")
    gathered = count(monkeypatch, image_store.ImageTable, "batch")
    one_by_one = count(monkeypatch, TorchvisionBackend, "process_image")
    monkeypatch.setattr(
        ImageBatches, "__getitem__", lambda self, i: pytest.fail("an image was asked for alone")
    )
    of_run: list[Any] = []
    fit = stages.Stage.fit

    def fit_counted(stage: Any, trainer: Any) -> Any:
        one_by_one.clear()  # what set-up probed
        found = fit(stage, trainer)
        of_run.append((len(fetched), len(gathered), len(one_by_one)))
        return found

    monkeypatch.setattr(stages.Stage, "fit", fit_counted)
    decoded = image_store.decoded
    run.train_recipe(recipe)
    train_batches, scored = (
        2 * 3,
        math.ceil(40 / 20),
    )  # without validation no training images are scored
    assert of_run == [(train_batches + scored, train_batches + scored, 0)]
    assert sorted(map(len, fetched)) == sorted([32] * 6 + [20] * 2)
    assert image_store.decoded - decoded == 2000 + 1000  # all of the sample, once
    run.train_recipe(recipe, fresh=True)
    assert image_store.decoded - decoded == 2000 + 1000  # and never again


class Reads(TorchFunctionMode):
    """Notes the methods that wait on a GPU and, on a CPU, just look at the memory."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("tolist", "cpu", "numpy"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Notes every operation that makes the host wait for a device: reading a number, or a copy
    between the two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.methods = Reads(self.seen)

    def __enter__(self) -> "Waits":
        self.methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.methods.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select"):
            self.seen.append(name)
        devices = {t.device.type for t in (*args, found) if isinstance(t, torch.Tensor)}
        if name in ("_to_copy", "copy_") and len(devices) > 1:
            self.seen.append(name)
        return found


def test_waits_are_seen() -> None:
    with Waits() as waits:
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
        {"method": "linear"},
        {"label_smoothing_factor": 0.1, "gradient_accumulation_steps": 2},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "image_size_schedule": [[0, 16], [1, 32]]},
        {"auto_augment": "trivialaugment", "random_erasing": 0.5},
    ],
)
def test_no_step_waits_for_the_device(
    keys: dict, make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits()
    steps: list[int] = []

    class Watched(Speed):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_begin(args, state, control, **kwargs)
            if state.global_step == 1:  # the first step sets things up
                waits.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)
            steps.append(state.global_step)
            if state.global_step == state.max_steps:
                waits.__exit__(None, None, None)

    monkeypatch.setattr(stages, "Speed", Watched)
    run.train_recipe(
        make_recipe(
            max_train_samples=128,
            max_eval_samples=10,
            max_steps=6,
            per_device_train_batch_size=8,
            logging_steps=100,
            **keys,
        )
    )
    assert steps == [1, 2, 3, 4, 5, 6]
    assert waits.seen == []


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
    with FakeTensorMode():
        images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="cuda")
        index = torch.arange(4, device="cuda")
        transforms.train(
            images, index, index
        )  # the processor keeps its mean and deviation on the device from here on
        with Waits() as waits:
            assert transforms.train(images, index, index).shape == (4, 3, 32, 32)
            transforms.evaluate(images)
    assert waits.seen == []


def test_a_frozen_backbone_sees_each_image_once(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(
        method="linear",
        validation_fraction=0.1,
        max_train_samples=70,
        max_eval_samples=30,
        num_train_epochs=3,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
    )
    seen: list[int] = []
    load = run.load_backbone

    def counted(*args: Any) -> Any:
        backbone = load(*args)
        hook = lambda _, __, kwargs: seen.append(len(kwargs["pixel_values"]))  # noqa: E731
        backbone.model.register_forward_pre_hook(hook, with_kwargs=True)
        return backbone

    monkeypatch.setattr(run, "load_backbone", counted)
    run.train_recipe(recipe)
    passes = [n for n in seen if n > 1]  # one image counts the FLOPs
    assert sorted(passes) == sorted([32, 32, 6, 30, 30])  # train, validation, test
    seen.clear()
    run.train_recipe(recipe, fresh=True)
    assert [n for n in seen if n > 1] == []
