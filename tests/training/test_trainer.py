"""How the trainer trains: accumulated batches, the best checkpoint, early stopping, divergence, and
batches that do not fit.
"""

import pytest
import torch
from helpers.runs import (
    assert_same_run,
    largest_difference,
    saved_weights,
)
from helpers.watching import BeforeForward, stopped_in_step, trainer_callbacks
from safetensors.torch import load_file

from hf_cifar.errors import Diverged


def test_accumulated_batches_are_the_big_batch(tiny, train):
    keys = {
        "optim": "sgd",
        "learning_rate": 0.05,
        "label_smoothing_factor": 0.1,
        "validation_fraction": 0,
        "num_train_epochs": 1,
        "max_train_samples": 32,
    }
    big = train("big", tiny("vit"), per_device_train_batch_size=16, **keys)
    keys |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    small = train("small", tiny("vit"), **keys)
    assert big.metrics["global_step"] == 2
    trained = saved_weights(big)
    assert largest_difference(trained, saved_weights(small)) < 1e-6
    start = load_file(tiny("vit") / "model.safetensors")
    body = [name for name in start if start[name].shape == trained[name].shape]
    assert max(float((trained[name] - start[name]).abs().max()) for name in body) > 1e-4


def test_fewer_images_than_a_batch(tiny, train):
    run = train("run", tiny("vit"), per_device_train_batch_size=64)
    assert run.metrics["global_step"] == 2


def test_the_best_checkpoint_on_validation_is_the_model(tiny, train):
    run = train(
        "run",
        tiny("resnet"),
        num_train_epochs=6,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        save_total_limit=1,
    )
    evaluations = [entry for entry in run.metrics["history"] if "eval_accuracy" in entry]
    scores = {entry["step"]: entry["eval_accuracy"] for entry in evaluations}
    best = run.metrics["best_step"]
    assert scores[best] == max(scores.values()) > min(scores.values())
    assert scores[best] == run.metrics["validation_accuracy"]
    folder = run.path / "checkpoints"
    checkpoint = load_file(folder / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(checkpoint[n], tensor) for n, tensor in saved_weights(run).items())
    left = {path.name for path in folder.glob("checkpoint-*")}
    assert left == {f"checkpoint-{best}", "checkpoint-30"}


def test_training_stops_when_nothing_gets_better_and_a_resumed_run_too(tiny, train):
    keys = {
        "early_stopping_patience": 2,
        "early_stopping_threshold": 0.9,
        "num_train_epochs": 6,
        "save_total_limit": 9,
    }
    run = train("run", tiny("vit"), **keys)
    assert run.metrics["global_step"] == 15 and run.metrics["best_step"] in (5, 10, 15)
    with stopped_in_step(12):  # after the first evaluation that was no better
        train("stopped", tiny("vit"), **keys)
    assert_same_run(run, train("stopped", tiny("vit"), **keys))


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step_and_a_remedy(tiny, train, tmp_path):
    with pytest.raises(Diverged) as caught:
        train("run", tiny("vit"), learning_rate=1e25, max_grad_norm=0, optim="sgd")
    message = str(caught.value)
    assert "not finite at step" in message and "learning_rate" in message and "\n" not in message
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_batch_that_does_not_fit_shrinks(tiny, train):
    def allocate(state, inputs):
        if len(inputs["pixel_values"]) > 7:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
            )

    with trainer_callbacks(BeforeForward(allocate)):
        run = train("run", tiny("vit"), auto_find_batch_size=True, num_train_epochs=1)
    steps, speed = run.metrics["global_step"], run.metrics["train_samples_per_second"]
    assert steps > 4 and speed < 1e6
    images_per_step = speed * run.metrics["train_runtime"] / steps
    assert images_per_step == pytest.approx(7, abs=1e-3)  # what fitted, not the 8 of the recipe
