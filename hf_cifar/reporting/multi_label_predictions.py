"""predictions.parquet of a model that gives a picture several labels, or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_cifar.evaluation.multi_label_metrics import THRESHOLD
from hf_cifar.files import atomic_file


def write_label_set_predictions(
    folder: Path, targets: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str]
) -> None:
    """Write `predictions.parquet` into a run folder: index, labels, predictions, probabilities.

    targets: bool [N, C]. probabilities: float [N, C], stored as float32; the predictions are the
    labels from 0.5 on. label_names: C names, stored as features that `datasets.load_dataset` reads.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = datasets.Sequence(datasets.ClassLabel(names=list(label_names)))
    features = datasets.Features(
        {
            "index": datasets.Value("int64"),
            "labels": labels,
            "predictions": labels,
            "probabilities": datasets.Sequence(datasets.Value("float32")),
        }
    )
    columns = [
        np.arange(len(targets), dtype=np.int64),
        [np.flatnonzero(row) for row in targets],
        [np.flatnonzero(row >= THRESHOLD) for row in probabilities],
        list(np.asarray(probabilities, np.float32)),
    ]
    schema = features.arrow_schema
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    with atomic_file(folder / "predictions.parquet") as file:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)
