"""What is frozen by schedule trains from its time on, and not before."""

import itertools

import pytest
import torch
from helpers import tiny_models
from helpers.adapted_models import prepare, trainable_names
from helpers.watching import trainer_callbacks
from transformers import TrainerCallback

from hf_cifar.methods.schedules import UnfreezeSchedule
from hf_cifar.models.structure import blocks, head
from hf_cifar.recipe.fields import MethodKeys


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_gradual_unfreezing_goes_from_the_top_to_everything(family):
    model = tiny_models.build(family)
    everything = {name for name, _ in model.named_parameters()}
    schedule = UnfreezeSchedule(model, MethodKeys(unfreeze_every=0.5))
    count = len(blocks(model))
    stages = [schedule.stage_at(epoch) for epoch in (0.0, 0.49, 0.5, 1.0, 99)]
    assert stages == [0, 0, 1, 2, count + 1]
    names = [schedule.names_in(stage) for stage in range(count + 2)]
    assert all(fewer < more for fewer, more in itertools.pairwise(names))
    classifier = head(model)[0] + "."
    assert names[0] == {name for name in everything if name.startswith(classifier)}
    partial = prepare(tiny_models.build(family), "partial", unfreeze_blocks=1)
    assert names[1] == trainable_names(partial)
    assert names[-1] == everything


class MovedWeights(TrainerCallback):
    """The epoch and the names of the weights that differ from the start, before each step."""

    def __init__(self):
        self.start, self.steps = {}, []

    def on_step_begin(self, args, state, control, **kwargs):
        weights = {n: p.detach().clone() for n, p in kwargs["model"].named_parameters()}
        self.start = self.start or weights
        moved = {n for n in weights if not torch.equal(weights[n], self.start[n])}
        self.steps.append((state.epoch or 0.0, moved))


@pytest.mark.parametrize("schedule", [{"head_epochs": 1}, {"unfreeze_every": 1}])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_schedule_freezes_to_the_bit_until_its_time(schedule, method, tiny, train):
    watcher = MovedWeights()
    keys = {"num_train_epochs": 3, "weight_decay": 0.1, "optim": "adamw_torch"}
    with trainer_callbacks(watcher):
        run = train("run", tiny("vit"), method=method, **schedule, **keys)
    for epoch, moved in watcher.steps:
        if epoch <= 1:  # seen before the step, so the first of the second epoch has not moved any
            assert all("classifier" in name for name in moved)
        elif "unfreeze_every" in schedule and epoch <= 2:
            top = ("classifier", ".2.", "layernorm.")
            assert all(any(part in name for part in top) for name in moved)
    lowest_moved = any(".0." in name for name in watcher.steps[-1][1])
    assert lowest_moved == ("head_epochs" in schedule)
    assert run.metrics["global_step"] == 15
