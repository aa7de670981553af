"""predictions.parquet: the answer to every test image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MISTAKES_SHOWN = 25


def write_predictions(
    folder: Path,
    index: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    label_names: Sequence[str],
) -> None:
    """Writes `predictions.parquet`: index, label, prediction (class labels with names) and
    probabilities.

    Args:
        folder: the run folder, which exists.
        index: [N] int, row of the sample in the test split.
        labels: [N] int.
        probabilities: [N, C] float, kept as float32; the prediction is their argmax.
        label_names: C names, stored as features that `datasets.load_dataset` reads.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = datasets.ClassLabel(names=list(label_names))
    features = datasets.Features(
        {
            "index": datasets.Value("int64"),
            "label": names,
            "prediction": names,
            "probabilities": datasets.Sequence(datasets.Value("float32")),
        }
    )
    columns = [
        np.asarray(index, np.int64),
        np.asarray(labels, np.int64),
        np.asarray(probabilities).argmax(axis=1).astype(np.int64),
        list(np.asarray(probabilities, np.float32)),
    ]
    schema = features.arrow_schema
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    partial = folder / "predictions.parquet.partial"
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), partial)
    os.replace(partial, folder / "predictions.parquet")


def confident_mistakes(
    folder: Path, limit: int = MISTAKES_SHOWN
) -> list[tuple[int, int, int, float]]:
    """(index, label, prediction, confidence) of the wrong predictions, most confident first, ties
    by index.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "predictions.parquet")
    wrong = [
        (row["index"], row["label"], row["prediction"], max(row["probabilities"]))
        for row in table.to_pylist()
        if row["label"] != row["prediction"]
    ]
    return sorted(wrong, key=lambda row: (-row[3], row[0]))[:limit]
