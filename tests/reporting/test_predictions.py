"""predictions.parquet, read by the library that will read it."""

import os
import subprocess
import sys

import numpy as np
from helpers.made_up_run import LABELS, METRICS, PROBABILITIES, SAMPLES, TRUE, pictures

from hf_cifar.reporting.plots import write_plots
from hf_cifar.reporting.predictions import confident_mistakes


def test_predictions_are_read_by_datasets(run):
    import datasets

    table = datasets.Dataset.from_parquet(
        str(run / "predictions.parquet"), cache_dir=str(run.parent / "cache")
    )
    assert table.features["label"].names == table.features["prediction"].names == LABELS
    assert table["index"][:] == list(range(SAMPLES))
    assert table["label"][:] == TRUE.tolist()
    assert table["prediction"][:] == PROBABILITIES.argmax(axis=1).tolist()
    assert np.array_equal(np.asarray(table["probabilities"][:], np.float32), PROBABILITIES)


def test_the_most_confident_mistakes_come_first(run):
    wrong = np.flatnonzero(PROBABILITIES.argmax(axis=1) != TRUE)
    assert len(wrong) > 25
    expected = sorted(wrong.tolist(), key=lambda i: (-PROBABILITIES[i].max(), i))[:25]
    asked = []
    write_plots(run, METRICS, lambda rows: asked.extend(rows) or pictures(rows))
    assert asked == expected
    for index, label, guess, confidence in confident_mistakes(run):
        assert (label, guess) == (TRUE[index], PROBABILITIES[index].argmax())
        assert confidence == PROBABILITIES[index].max()


def test_importing_predictions_is_cheap():
    script = """
import sys
import hf_cifar.reporting.predictions
print({"torch", "matplotlib", "sklearn", "datasets"} & set(sys.modules))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
