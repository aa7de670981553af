"""predictions.parquet: the model's answer to every test image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_cifar.files import atomic_file

MISTAKES_SHOWN = 25


def write_predictions(
    folder: Path,
    index: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    label_names: Sequence[str],
) -> None:
    """Write `predictions.parquet` into a run folder: index, label, prediction and probabilities.

    index: int [N], row of the image in the test split. labels: int [N]. probabilities: float
    [N, C], stored as float32; the prediction is their argmax. label_names: C names, stored as
    features that `datasets.load_dataset` reads.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    class_label = datasets.ClassLabel(names=list(label_names))
    features = datasets.Features(
        {
            "index": datasets.Value("int64"),
            "label": class_label,
            "prediction": class_label,
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
    with atomic_file(folder / "predictions.parquet") as file:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)


def read_scores(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the label of each test image, int64 [N], and its probabilities, float32 [N, C]."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "predictions.parquet", columns=["label", "probabilities"])
    labels = table["label"].to_numpy()
    flat = table["probabilities"].combine_chunks().flatten().to_numpy()
    return labels, flat.reshape(len(labels), -1)


def confident_mistakes(
    folder: Path, limit: int = MISTAKES_SHOWN
) -> list[tuple[int, int, int, float]]:
    """Return (index, label, prediction, probability) of wrong predictions, most confident first."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "predictions.parquet")
    table = table.filter(pc.not_equal(table["label"], table["prediction"]))
    mistakes = [
        (row["index"], row["label"], row["prediction"], max(row["probabilities"]))
        for row in table.to_pylist()
    ]
    return sorted(mistakes, key=lambda mistake: (-mistake[3], mistake[0]))[:limit]
