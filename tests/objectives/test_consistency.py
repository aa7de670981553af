"""AugMix's consistency loss: the authors' definition, runs that resume to the bit, and keys that
don't go together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import (
    CHECKPOINT_EVERY_3,
    assert_same_run,
    assert_same_weights,
    saved_weights,
    write_recipe,
)
from helpers.watching import stopped_in_step
from torch.nn import functional as F

from hf_cifar.cli.main import run as command
from hf_cifar.objectives.classification import Classification
from hf_cifar.objectives.consistency import jensen_shannon
from hf_cifar.planning.memory import work
from hf_cifar.planning.model_sizes import Sizes
from hf_cifar.recipe.fields import TRAINING_DEFAULTS
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs.run import Run

AUGMIX: dict[str, Any] = {"auto_augment": "augmix", "consistency_weight": 12}


def definition(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the loss of the authors' program (cifar.py), of [3, B, C]."""
    clean, first, second = (each.softmax(1) for each in logits)
    mixture = torch.clamp((clean + first + second) / 3.0, 1e-7, 1).log()
    divergence = sum(F.kl_div(mixture, p, reduction="batchmean") for p in (clean, first, second))
    loss = F.cross_entropy(logits[0], labels, label_smoothing=smoothing)
    return loss + 12 * divergence / 3.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_authors(smoothing: float) -> None:
    training = TRAINING_DEFAULTS | {"label_smoothing_factor": smoothing}
    objective = Classification(Recipe(dataset_name="sample", training=training, **AUGMIX))
    torch.manual_seed(0)
    logits = torch.randn(3, 12, 10, requires_grad=True)
    labels = torch.randint(10, (12,))
    expected = definition(logits, labels, smoothing)
    loss = objective.loss({"logits": logits.flatten(0, 1)}, labels)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(each, logits)[0] for each in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    parts = [
        objective.loss(
            {"logits": logits[:, i : i + 4].flatten(0, 1)}, labels[i : i + 4], torch.tensor(12)
        )
        for i in range(0, 12, 4)
    ]
    torch.testing.assert_close(sum(parts), expected)
    with torch.no_grad():  # evaluation sees one view of an image
        plain = objective.loss({"logits": logits[0]}, labels)
    torch.testing.assert_close(plain, F.cross_entropy(logits[0], labels))


def test_the_divergence_is_that_of_jensen_and_shannon() -> None:
    same = torch.randn(1, 5, 4).expand(3, -1, -1)
    assert float(jensen_shannon(same)) == pytest.approx(0, abs=1e-6)
    sure = 100.0 * torch.eye(3)[:, None]  # three views that agree on nothing: log 3
    assert float(jensen_shannon(sure)) == pytest.approx(torch.log(torch.tensor(3.0)).item())
    assert torch.isfinite(jensen_shannon(1e4 * sure))


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("resnet", {"label_smoothing_factor": 0.1}),
        ("vit", {"method": "lora", "gradient_accumulation_steps": 2, "random_erasing": 0.5}),
    ],
)
def test_a_stopped_run_resumes_to_the_same_bits(
    family: str, keys: dict[str, Any], tiny: Callable[[str], Path], train: Callable[..., Run]
) -> None:
    keys = CHECKPOINT_EVERY_3 | AUGMIX | keys | {"per_device_train_batch_size": 4}
    whole = train("whole", tiny(family), **keys)
    with stopped_in_step(5):
        train("stopped", tiny(family), **keys)
    assert_same_run(whole, train("stopped", tiny(family), **keys))


def test_workers_change_nothing_and_the_loss_does(
    tiny: Callable[[str], Path], train: Callable[..., Run]
) -> None:
    here = train("here", tiny("vit"), **AUGMIX)
    there = train("there", tiny("vit"), **AUGMIX, data_path="workers", dataloader_num_workers=2)
    assert_same_weights(here, there)
    alone = train("alone", tiny("vit"), auto_augment="augmix")
    ours, theirs = saved_weights(here), saved_weights(alone)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    operations = [run.metrics["history"][-1]["total_flos"] for run in (here, alone)]
    assert operations[0] == pytest.approx(3 * operations[1])


def test_the_plan_counts_the_views() -> None:
    sizes = Sizes(*[1] * len(Sizes.__dataclass_fields__))  # type: ignore[arg-type]
    one, three = (
        work(Recipe(dataset_name="sample", **keys), sizes, False, 1, 1000) for keys in ({}, AUGMIX)
    )
    assert three == (one[0], 3 * one[1], one[2])


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"auto_augment": "randaugment"}, "set `auto_augment: augmix`"),
        ({"auto_augment": None}, "set `auto_augment: augmix`"),
        ({"mixup_alpha": 0.2}, "`mixup_alpha` mixes two"),
        ({"cutmix_alpha": 1}, "`cutmix_alpha` mixes two"),
        ({"method": "linear", "feature_views": 2}, "features are computed once"),
        ({"method": "partial", "feature_views": 2}, "features are computed once"),
        ({"objective": "distillation", "teacher": "x"}, "has a loss of its own"),
        ({"consistency_weight": -1}, "at least 0"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    change: dict[str, Any], part: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = write_recipe(tmp_path / "mine.yaml", Path("base"), **AUGMIX | change)
    assert command(["recipes", "check", str(path)]) != 0
    output = capsys.readouterr()
    assert part in output.out + output.err and "Traceback" not in output.err
