"""Semi-supervised learning: the loss, which images are paired, resume, and what is refused."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.runs import CHECKPOINT_EVERY_3, assert_same_run, write_recipe
from torch.nn import functional as F

from hf_cifar.cli import main
from hf_cifar.objectives.base import Datasets, ReadyModel
from hf_cifar.objectives.classification import Classification
from hf_cifar.objectives.semi_supervised import SemiSupervised
from hf_cifar.recipe.load import load_recipe
from hf_cifar.runs.run import Run

CPU = torch.device("cpu")
KEYS: dict[str, Any] = {
    "objective": "semi_supervised",
    "train_samples_per_class": 2,
    "max_train_samples": None,
    "unlabelled_ratio": 3,
    "unlabelled_threshold": 0.12,
}


@pytest.fixture
def objective(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., SemiSupervised]:
    """objective(key=value, ...): that of a recipe with KEYS and these."""

    def of_recipe(**keys: Any) -> SemiSupervised:
        path = write_recipe(tmp_path / "mine.yaml", tiny("resnet"), **KEYS | keys)
        return SemiSupervised(load_recipe(str(path)))

    return of_recipe


def datasets_of(objective: Classification) -> Datasets:
    backbone = objective.load_backbone()
    return objective.datasets(ReadyModel(backbone, backbone.model, CPU))


def inputs_of(batches: Any, tickets: list[int]) -> dict[str, torch.Tensor]:
    return batches.model_inputs(batches.__getitems__(tickets), CPU)


# ---- loss ----


def test_the_loss_is_the_papers(objective: Callable[..., SemiSupervised]) -> None:
    learner = objective(unlabelled_threshold=0.6, unlabelled_weight=0.5)
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(4 * (1 + 2 * 3), 10, generator=generator)).requires_grad_()
    labels = torch.tensor([3, 1, 4, 1])
    loss = learner.loss({"logits": logits}, labels)
    expected, confident = F.cross_entropy(logits[:4], labels), 0
    for weak, strong in zip(logits[4:16], logits[16:], strict=True):
        if weak.softmax(0).max() >= 0.6:
            confident += 1
            expected = expected - 0.5 * strong.log_softmax(0)[weak.argmax()] / 12
    assert 0 < confident < 12
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[4:16].any()  # a target is no way to a lower loss
    assert logits.grad[16:].any(1).sum() == confident

    parts = []
    for rows in (slice(0, 1), slice(1, 4)):  # of accumulated batches, or of two processes
        labelled, weak, strong = logits[:4], logits[4:16], logits[16:]
        views = slice(3 * rows.start, 3 * rows.stop)
        part = torch.cat([labelled[rows], weak[views], strong[views]])
        parts.append(learner.loss({"logits": part}, labels[rows], torch.tensor(4)))
    torch.testing.assert_close(sum(parts), expected)
    of_evaluation = learner.loss({"logits": logits[:4]}, labels)
    torch.testing.assert_close(of_evaluation, F.cross_entropy(logits[:4], labels))


# ---- batches ----


def test_views_depend_on_the_labelled_ticket_alone(
    objective: Callable[..., SemiSupervised],
) -> None:
    train: Any = datasets_of(objective(random_erasing=0.5)).train
    tickets = [7 * len(train) + index for index in (3, 17, 19, 0)]
    whole = inputs_of(train, tickets)
    labelled, weak, strong = whole["pixel_values"].split([4, 12, 12])
    for number, ticket in enumerate(tickets):
        alone = inputs_of(train, [ticket])
        own = slice(3 * number, 3 * number + 3)
        parts = torch.cat([labelled[number : number + 1], weak[own], strong[own]])
        torch.testing.assert_close(alone["pixel_values"], parts)
        assert alone["labels"] == whole["labels"][number]
    assert all((a - b).abs().max() > 0.1 for a, b in zip(weak, strong, strict=True))
    later = inputs_of(train, [8 * len(train) + 3])["pixel_values"]
    assert (later[0] - labelled[0]).abs().max() > 0.01  # another view of the image


def test_every_unlabelled_image_comes_once_before_any_comes_again(
    objective: Callable[..., SemiSupervised],
) -> None:
    train: Any = datasets_of(objective()).train
    n = len(train.weak)
    assert n == 1_800 and len(train) == 20
    order = np.array(train.unlabelled_tickets(np.arange(3 * n)))
    assert sorted(order) == list(range(3 * n))
    first, second, _ = order.reshape(3, n) % n
    assert (first != np.arange(n)).any() and (first != second).any()
    batch = train.__getitems__([25, 4])  # ticket k owns the places from 3 k on
    images = batch["weak"]["epoch"] * n + batch["weak"]["index"]
    assert images.tolist() == [*order[75:78], *order[12:15]]
    assert torch.equal(batch["weak"]["index"], batch["strong"]["index"])


def test_labelled_images_and_weak_views_are_cropped_and_mirrored_alone(
    objective: Callable[..., SemiSupervised], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = {"train_samples_per_class": 2, "max_train_samples": None}
    path = write_recipe(tmp_path / "plain.yaml", tiny("resnet"), **keys)
    plain = datasets_of(Classification(load_recipe(str(path)))).train
    semi = datasets_of(objective(auto_augment="trivialaugment", random_erasing=1.0)).train
    tickets = [40, 45, 59]
    pixels = inputs_of(semi, tickets)["pixel_values"]
    assert torch.equal(pixels[:3], inputs_of(plain, tickets)["pixel_values"])
    erased = [bool((image == 0).all(0).any()) for image in pixels]
    assert erased == [False] * 12 + [True] * 9

    still = {"random_resized_crop_scale": None, "horizontal_flip": 0}
    learner = objective(**still)
    semi = datasets_of(learner).train
    batch: Any = semi.__getitems__(tickets)
    rows = learner.unlabelled.rows[batch["weak"]["index"]]
    images = learner.unlabelled.images.batch(rows)
    weak = semi.model_inputs(batch, CPU)["pixel_values"][3:12]
    torch.testing.assert_close(
        weak, learner.load_backbone().processor(images, return_tensors="pt").pixel_values
    )


def test_neither_test_nor_validation_images_are_learned_from(
    objective: Callable[..., SemiSupervised],
) -> None:
    learner = objective(max_eval_samples=None, unlabelled_dataset="sample")
    data, unlabelled = learner.data, learner.unlabelled
    assert data.validation is not None and data.test is not None
    assert unlabelled.images is data.train.images is data.validation.images
    assert set(data.train.rows) < set(unlabelled.rows)
    together = np.sort(np.concatenate([unlabelled.rows, data.validation.rows]))
    assert together.tolist() == list(range(2_000))
    assert torch.equal(
        torch.from_numpy(learner.measured.labels), torch.from_numpy(unlabelled.labels)
    )


# ---- unlabelled images from elsewhere ----


def save_pictures(folder: Path, learner: SemiSupervised, test_images: int) -> Path:
    """Write a flat folder of 8 unlabelled pictures and some of the test split."""
    folder.mkdir()
    test = learner.data.test
    assert test is not None
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(8)]
    pictures += [test.images.picture(int(row)) for row in test.rows[:test_images]]
    for number, picture in enumerate(pictures):
        PIL.Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def test_pictures_that_test_has_too_are_warned_of_or_taken_out(
    objective: Callable[..., SemiSupervised],
    train: Callable[..., Run],
    tiny: Callable[[str], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = str(save_pictures(tmp_path / "pictures", objective(), 5))
    with caplog.at_level(logging.WARNING, "hf_cifar"):
        run = train("run", tiny("vit"), **KEYS | {"unlabelled_dataset": folder, "max_steps": 2})
    message = "unlabelled_dataset: 5 of the 13 images are in test too, exactly by their pixels"
    assert [record.message.split(";")[0] for record in caplog.records].count(message) == 1
    assert run.metrics["unlabelled"]["images_in_test"] == 5
    card = (run.path / "README.md").read_text()
    assert "5 of the 13 images without labels that it learned from are test images too" in card
    assert "from the labels of 20 images and from 13 images of pictures without labels" in card
    assert folder not in card
    caplog.clear()
    apart = objective(unlabelled_dataset=folder, drop_test_duplicates=True)
    assert len(apart.unlabelled) == 8 and apart.in_test == 0
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert not [r for r in warnings if "unlabelled_dataset" in r.message]


def test_colours_are_learned_from_two_labels_each_and_a_flat_folder(
    train: Callable[..., Run], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)

    def save(path: Path, channel: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 120, (32, 32, 3))
        pixels[..., channel] += 100
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)

    for channel, name in enumerate(("red", "green", "blue")):
        for number in range(2):
            save(tmp_path / "data" / "train" / name / f"{number}.png", channel)
        for number in range(10):
            save(tmp_path / "data" / "test" / name / f"{number}.png", channel)
    for number in range(30):
        save(tmp_path / "pictures" / f"{number}.png", number % 3)
    keys = KEYS | {
        "dataset_name": str(tmp_path / "data"),
        "unlabelled_dataset": str(tmp_path / "pictures"),
        "unlabelled_threshold": 0.8,
        "train_samples_per_class": None,
        "validation_fraction": 0,
        "max_eval_samples": None,
        "max_steps": 60,
        "per_device_train_batch_size": 6,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    run = train("run", tiny("resnet"), **keys)
    assert run.metrics["test_accuracy"] > 0.9
    assert run.metrics["unlabelled_confident_share"] > 0.9
    assert "unlabelled_confident_accuracy" not in run.metrics  # of pictures whose truth is unknown


# ---- runs ----


def test_a_stopped_run_resumes_to_the_same_bits(
    train: Callable[..., Run], tiny: Callable[[str], Path]
) -> None:
    keys = KEYS | CHECKPOINT_EVERY_3 | {"max_steps": 4, "random_erasing": 0.3}
    whole = train("whole", tiny("resnet"), **keys)
    folder = train("stopped", tiny("resnet"), **keys).path
    for file in ("metrics.json", "model.safetensors"):
        (folder / file).unlink()
    newest = max(folder.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    shutil.rmtree(newest)
    assert_same_run(whole, train("stopped", tiny("resnet"), **keys))
    assert whole.metrics["unlabelled_confident_share"] > 0
    assert 0 <= whole.metrics["unlabelled_confident_accuracy"] <= 1


def test_lora_with_weight_0_is_classification(
    train: Callable[..., Run], tiny: Callable[[str], Path]
) -> None:
    plain = {"objective": "classification", "train_samples_per_class": 2, "max_train_samples": None}
    keys = {"method": "lora", "max_steps": 3, "logging_steps": 1}
    weightless = KEYS | {"unlabelled_weight": 0.0, "unlabelled_threshold": 0.0}
    histories = [
        train(name, tiny("vit"), **keys | more).metrics["history"]
        for name, more in (("plain", plain), ("weightless", weightless))
    ]
    losses, flops = (
        [[e[name] for e in history if name in e] for history in histories]
        for name in ("loss", "total_flos")
    )
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and len(losses[0]) == 3
    assert flops[1][0] == 7 * flops[0][0]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (
            {"objective": "classification", "unlabelled_dataset": "sample"},
            "`objective: semi_supervised`",
        ),
        ({"method": "linear"}, "full, lora"),
        ({"mixup_alpha": 0.2}, "mixup_alpha: mixes images"),
        ({"image_size_schedule": [[0, 16], [1, 32]]}, "image_size_schedule: goes by epochs"),
        ({"unlabelled_dataset": "./nowhere"}, "unlabelled_dataset: dataset_name ./nowhere"),
        ({"unlabelled_ratio": 0}, "unlabelled_ratio: must be at least 1"),
        ({"unlabelled_threshold": 95}, "unlabelled_threshold: must be at most 1"),
        ({"unlabelled_weight": -1}, "unlabelled_weight: must be at least 0"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(
    change: dict[str, Any],
    part: str,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_recipe(tmp_path / "mine.yaml", tiny("resnet"), **KEYS | change)
    assert main.run(["train", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    assert part in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_of_test_pictures_alone_leaves_nothing(
    objective: Callable[..., SemiSupervised],
    tiny: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_pictures(tmp_path / "pictures", objective(), 5)
    for number in range(8):
        (folder / f"{number}.png").unlink()
    keys = KEYS | {"unlabelled_dataset": str(folder), "drop_test_duplicates": True}
    path = write_recipe(tmp_path / "mine.yaml", tiny("resnet"), **keys)
    assert main.run(["train", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "5 of the 5 images are in test too" in last and "name other images" in last
