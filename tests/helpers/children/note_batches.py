"""Train a recipe and write the inputs and labels of every training step.

note_batches.py RECIPE FOLDER: those of process R go to FOLDER-R.npz.
"""

import sys

import numpy as np
from helpers.runs import without_drawing

import hf_cifar
from hf_cifar.distributed import rank
from hf_cifar.training.trainer import CifarTrainer

recipe, folder = sys.argv[1:]
arrays: dict[str, np.ndarray] = {}
prepare = CifarTrainer._prepare_inputs


def noting(self: CifarTrainer, inputs: dict) -> dict:
    prepared = prepare(self, inputs)
    if self.model.training:  # type: ignore[union-attr]
        step = len(arrays) // 2
        for name in ("pixel_values", "labels"):
            arrays[f"{name} {step}"] = prepared[name].numpy().copy()
    return prepared


CifarTrainer._prepare_inputs = noting  # type: ignore[method-assign]
with without_drawing():
    hf_cifar.train(recipe, output_dir=folder)
np.savez(f"{folder}-{rank()}.npz", **arrays)  # type: ignore[arg-type]
