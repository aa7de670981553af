"""A whole run folder of the made-up run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.made_up_run import LABELS, METRICS, PROBABILITIES, SAMPLES, TRUE, card_of, pictures

from hf_cifar.reporting.plots import write_plots
from hf_cifar.reporting.predictions import write_predictions


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder with metrics, predictions, plots and card; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "my_run"
    folder.mkdir()
    write_predictions(folder, np.arange(SAMPLES), TRUE, PROBABILITIES, LABELS)
    write_plots(folder, METRICS, pictures)
    card_of(folder, METRICS)
    return folder
