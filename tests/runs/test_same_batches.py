"""The model gets the same batches, bit for bit, whatever brings them: table or workers, one process
or two, cut or not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from test_run import BASE, EVERY_3, Cut, cut_at

import hf_cifar
from hf_cifar.reporting import predictions
from hf_cifar.runs import stages
from hf_cifar.training.trainer import CifarTrainer

ROOT = Path(__file__).parents[2]
KEYS = BASE | {
    "random_resized_crop_scale": [0.4, 1.0],
    "max_steps": -1,
    "num_train_epochs": 2,
    "validation_fraction": 0.1,
}
KEYS |= {"eval_strategy": "no", "save_strategy": "no", "max_eval_samples": 5}
EPOCHS, STEPS = 2, 5  # an epoch of 40 images in batches of 8


class Found(Exception):
    """A trainer that is ready to train."""


@pytest.fixture
def write(tmp_path, tiny):
    """write(key=value, ...): a recipe file for a tiny ViT."""

    def made(**keys):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(KEYS | {"model_name_or_path": str(tiny("vit"))} | keys))
        return str(path)

    return made


@pytest.fixture
def batches(tmp_path, write, monkeypatch):
    """batches("run", key=value, ...): [(pixel_values, labels)] of every training step of a run, as
    the model got them.
    """
    monkeypatch.setattr(predictions, "write_plots", lambda *_: None)
    seen = []
    prepare = CifarTrainer._prepare_inputs

    def noting(self, inputs):
        found = prepare(self, inputs)
        if self.model.training:
            seen.append((found["pixel_values"].clone(), found["labels"].clone()))
        return found

    monkeypatch.setattr(CifarTrainer, "_prepare_inputs", noting)

    def run(name, **keys):
        seen.clear()
        hf_cifar.train(write(**keys), output_dir=str(tmp_path / name))
        return list(seen)

    run.seen = seen
    return run


def same(a, b):
    return len(a) == len(b) > 0 and all(
        torch.equal(x, y)
        for one, two in zip(a, b, strict=True)
        for x, y in zip(one, two, strict=True)
    )


def test_table_and_workers_bring_the_same(batches):
    table = batches("table", data_path="table")
    assert len(table) == EPOCHS * STEPS and all(p.shape == (8, 3, 32, 32) for p, _ in table)
    assert not torch.equal(
        table[0][0], table[STEPS][0]
    )  # another order, other crops, in the second epoch
    assert same(table, batches("on demand", data_path="workers"))
    assert same(table, batches("two workers", data_path="workers", dataloader_num_workers=2))
    assert same(
        table, batches("two workers and a table", data_path="table", dataloader_num_workers=2)
    )
    assert not same(table, batches("another seed", seed=1))


@pytest.mark.parametrize(
    "keys", [pytest.param({}, marks=pytest.mark.slow), {"dataloader_num_workers": 2}]
)
def test_a_cut_run_gets_the_batches_that_it_lacks(keys, batches, monkeypatch):
    whole = batches("whole", **EVERY_3)
    for step, begin in (
        (6, 0),
        (5, 3),
    ):  # dies in step 6 and goes on from checkpoint 3, dies in step 8 and goes on from 6
        with monkeypatch.context() as m, pytest.raises(Cut):
            cut_at(m, step)
            batches("cut", **EVERY_3, **keys)
        assert same(batches.seen, whole[begin : begin + step - 1])
    assert same(batches("cut", **EVERY_3, **keys), whole[6:])


def ready(monkeypatch, write, tmp_path, **keys):
    """The trainer of a run that has not begun."""
    monkeypatch.setattr(
        stages.Stage, "fit", lambda stage, trainer: (_ for _ in ()).throw(Found(trainer))
    )
    with pytest.raises(Found) as found:
        hf_cifar.train(write(**keys), output_dir=str(tmp_path / "ready"), fresh=True)
    return found.value.args[0]


def brought(trainer, skip=0):
    """What the trainer's own loader brings the model in both epochs, without the first batches of
    the first one.
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
def test_two_processes_share_the_batches_of_one(skip, write, tmp_path, monkeypatch):
    """The Trainer's own loader as it is made for each rank of two; the real processes are in the
    slow test.
    """
    one = brought(ready(monkeypatch, write, tmp_path, per_device_train_batch_size=16), skip)
    assert len(one) == EPOCHS * 2 - skip
    trainer = ready(monkeypatch, write, tmp_path, per_device_train_batch_size=8)
    ranks = []
    for rank in range(2):
        with monkeypatch.context() as m:
            for state in (PartialState, AcceleratorState):
                m.setitem(state._shared_state, "num_processes", 2)
                m.setitem(state._shared_state, "process_index", rank)
            ranks.append(brought(trainer, skip))
    together = [
        tuple(torch.cat(parts) for parts in zip(*both, strict=True))
        for both in zip(*ranks, strict=True)
    ]
    assert same(one, together)


NOTES = """
import os, sys
import numpy as np
import hf_cifar
from hf_cifar.trainer import CifarTrainer

seen, prepare = [], CifarTrainer._prepare_inputs

def noting(self, inputs):
    found = prepare(self, inputs)
    if self.model.training:
        seen.append({k: found[k].numpy().copy() for k in ("pixel_values", "labels")})
    return found

CifarTrainer._prepare_inputs = noting
hf_cifar.train(sys.argv[1], output_dir=sys.argv[2])
arrays = {f"{k} {i}": v for i, step in enumerate(seen) for k, v in step.items()}
np.savez(f"{sys.argv[2]}-{os.environ.get('RANK', '0')}.npz", **arrays)
"""


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"data_path": "workers", "dataloader_num_workers": 2}])
def test_two_real_processes_share_the_batches_of_one(keys, write, tmp_path):
    script = tmp_path / "notes.py"
    script.write_text(NOTES)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for processes in (1, 2):
        recipe = write(per_device_train_batch_size=16 // processes, **keys)
        start = [sys.executable]
        if processes == 2:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [*start, str(script), recipe, str(tmp_path / f"run{processes}")],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    one, first, second = (np.load(tmp_path / f"run{name}.npz") for name in ("1-0", "2-0", "2-1"))
    assert len(one) == len(first) == len(second) == 2 * EPOCHS * 2
    for name in one:
        assert np.array_equal(one[name], np.concatenate([first[name], second[name]])), name
    assert json.loads((tmp_path / "run2" / "metrics.json").read_text())["hardware"]["count"] == 2
