"""The average of the weights follows its recurrence, and is what is evaluated and saved."""

import pytest
import torch
from helpers.runs import held_out_images, pipeline_probabilities, saved_weights
from helpers.watching import trainer_callbacks
from transformers import TrainerCallback

from hf_cifar.models.load import load_backbone
from hf_cifar.models.structure import head
from hf_cifar.recipe.fields import ModelKeys
from hf_cifar.training import checkpoints


class WeightsOfEachStep(TrainerCallback):
    """Copies of all floating-point weights and buffers: before training and after each step."""

    def __init__(self):
        self.copies = []

    def copy(self, model):
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        floating = {n: t.detach().clone() for n, t in tensors.items() if t.is_floating_point()}
        self.copies.append(floating)

    def on_train_begin(self, args, state, control, **kwargs):
        self.copy(kwargs["model"])

    def on_step_end(self, args, state, control, **kwargs):
        self.copy(kwargs["model"])


def test_the_average_is_the_recurrence(tiny, train):
    watcher = WeightsOfEachStep()
    with trainer_callbacks(watcher):
        run = train("run", tiny("efficientnet"), ema_decay=0.7, validation_fraction=0.0)
    average = {name: tensor.double() for name, tensor in watcher.copies[0].items()}
    for weights in watcher.copies[1:]:
        average = {n: 0.7 * mean + 0.3 * weights[n].double() for n, mean in average.items()}
    assert len(watcher.copies) == 1 + run.metrics["global_step"]
    assert any("running_mean" in name for name in average)
    keys = ModelKeys(model_name_or_path=str(run.path))
    model = load_backbone(keys, list(run.metrics["labels"])).model
    saved = dict(model.named_parameters()) | dict(model.named_buffers())
    assert len(saved_weights(run)) >= len(average)
    body = [name for name in average if not name.startswith(head(model)[0])]  # a new head is loaded
    for name in body:
        torch.testing.assert_close(saved[name].double(), average[name], atol=1e-6, rtol=1e-5)
    assert not torch.equal(watcher.copies[-1][body[0]], saved[body[0]])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_averaged_model_is_evaluated_and_saved(method, tiny, train):
    keys = {"ema_decay": 0.9, "num_train_epochs": 3, "learning_rate": 0.02}
    run = train("run", tiny("vit"), method=method, **keys)
    images, labels = held_out_images(run)
    answers = pipeline_probabilities(run.path, images).argmax(1)
    assert (answers == labels).mean() == run.metrics["test_accuracy"]
    evaluations = [entry for entry in run.metrics["history"] if "eval_accuracy" in entry]
    best = max(entry["eval_accuracy"] for entry in evaluations)
    assert run.metrics["validation_accuracy"] == pytest.approx(best)
    newest = checkpoints.last_good(run.path / "checkpoints")[0]
    assert (newest / "ema.safetensors").is_file() and checkpoints.damage(newest) is None
