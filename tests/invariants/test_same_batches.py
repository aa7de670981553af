"""The model gets the same batches, bit for bit, whatever brings them: the image table or workers,
one process or two, stopped or not.
"""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from helpers import launching
from helpers.runs import CHECKPOINT_EVERY_3, train_into, write_recipe
from helpers.watching import stopped_in_step

from hf_cifar.training.trainer import CifarTrainer

KEYS = {
    "random_resized_crop_scale": [0.4, 1.0],
    "max_eval_samples": 5,
    "eval_strategy": "no",
    "save_strategy": "no",
}
EPOCHS, STEPS = 2, 5  # an epoch of 40 images in batches of 8


@pytest.fixture
def batches(tmp_path, tiny, monkeypatch):
    """batches("run", key=value, ...): [(pixel_values, labels)] of every training step of a run, as
    the model got them. `batches.seen` has those of a run that was stopped.
    """
    seen = []
    prepare = CifarTrainer._prepare_inputs

    def noting(self, inputs):
        prepared = prepare(self, inputs)
        if self.model.training:
            seen.append((prepared["pixel_values"].clone(), prepared["labels"].clone()))
        return prepared

    monkeypatch.setattr(CifarTrainer, "_prepare_inputs", noting)

    def run(name, **keys):
        seen.clear()
        train_into(tmp_path / name, tiny("vit"), **KEYS | keys)
        return list(seen)

    run.seen = seen
    return run


def same(first, second):
    tensors = [[t for step in steps for t in step] for steps in (first, second)]
    return len(first) == len(second) > 0 and all(map(torch.equal, *tensors))


def test_table_and_workers_bring_the_same(batches):
    table = batches("table", data_path="table")
    assert len(table) == EPOCHS * STEPS
    assert all(pixels.shape == (8, 3, 32, 32) for pixels, _ in table)
    assert not torch.equal(table[0][0], table[STEPS][0])  # another order and crops each epoch
    assert same(table, batches("workers", data_path="workers"))
    workers = {"dataloader_num_workers": 2}
    assert same(table, batches("two workers", data_path="workers", **workers))
    assert same(table, batches("two workers and a table", data_path="table", **workers))
    assert not same(table, batches("another seed", seed=1))


@pytest.mark.parametrize(
    "keys", [pytest.param({}, marks=pytest.mark.slow), {"dataloader_num_workers": 2}]
)
def test_a_stopped_run_gets_the_batches_that_it_lacks(keys, batches):
    whole = batches("whole", **CHECKPOINT_EVERY_3)
    # It stops in step 6 and resumes from checkpoint 3, then in step 8 and resumes from 6.
    for step, first in ((6, 0), (5, 3)):
        with stopped_in_step(step):
            batches("stopped", **CHECKPOINT_EVERY_3, **keys)
        assert same(batches.seen, whole[first : first + step])
    assert same(batches("stopped", **CHECKPOINT_EVERY_3, **keys), whole[6:])


class Ready(Exception):
    """Carries a trainer that is ready to train."""


def ready_trainer(monkeypatch, tiny, folder, **keys):
    def raise_ready(trainer, **_):
        raise Ready(trainer)

    with monkeypatch.context() as patch, pytest.raises(Ready) as caught:
        patch.setattr(CifarTrainer, "train", raise_ready)
        train_into(folder, tiny("vit"), fresh=True, **KEYS | keys)
    return caught.value.args[0]


def loaded_batches(trainer, skip):
    """Return what the trainer's own loader brings the model in both epochs, without the first
    `skip` batches.
    """
    steps = []
    for epoch in range(EPOCHS):
        trainer.state.epoch = float(epoch)
        loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        if skip and epoch == 0:
            loader = trainer.accelerator.skip_first_batches(loader, skip)
        trainer.model.train()
        for batch in loader:
            inputs = trainer._prepare_inputs(batch)
            steps.append((inputs["pixel_values"], inputs["labels"]))
    return steps


@pytest.mark.parametrize("skip", [0, 1])
def test_two_processes_share_the_batches_of_one(skip, tiny, tmp_path, monkeypatch):
    """The Trainer's own loader, as it is for each rank of two; the slow test has real processes."""
    folder = tmp_path / "run"
    alone = ready_trainer(monkeypatch, tiny, folder, per_device_train_batch_size=16)
    expected = loaded_batches(alone, skip)
    assert len(expected) == EPOCHS * 2 - skip
    trainer = ready_trainer(monkeypatch, tiny, folder, per_device_train_batch_size=8)
    ranks = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            for state in (PartialState, AcceleratorState):
                patch.setitem(state._shared_state, "num_processes", 2)
                patch.setitem(state._shared_state, "process_index", rank)
            ranks.append(loaded_batches(trainer, skip))
    together = [
        tuple(torch.cat(parts) for parts in zip(*steps, strict=True))
        for steps in zip(*ranks, strict=True)
    ]
    assert same(expected, together)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"data_path": "workers", "dataloader_num_workers": 2}])
def test_two_real_processes_share_the_batches_of_one(keys, tiny, tmp_path):
    for processes in (1, 2):
        batch = {"per_device_train_batch_size": 16 // processes}
        recipe = write_recipe(tmp_path / "recipe.yaml", tiny("vit"), **KEYS | keys | batch)
        launching.run(processes, "note_batches", str(recipe), str(tmp_path / f"run{processes}"))
    one, first, second = (np.load(tmp_path / f"run{name}.npz") for name in ("1-0", "2-0", "2-1"))
    assert len(one) == len(first) == len(second) == 2 * EPOCHS * 2
    for name in one:
        assert np.array_equal(one[name], np.concatenate([first[name], second[name]])), name
    metrics = json.loads((tmp_path / "run2" / "metrics.json").read_text())
    assert metrics["hardware"]["count"] == 2
