"""CIFAR-10 itself: its classes, the SHA-256 of its content, and its layout on the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Of the records of the binary version (a label byte, then 3,072 image bytes) in the order of
# uoft-cs/cifar10, which is that of data_batch_1 to 5 and test_batch of
# https://www.cs.toronto.edu/~kriz/cifar.html.
SHA256 = {
    ("train", 50_000): "a0181da372c0d63a5920fdbea2ec3f83ecbc552d378218e1cb473cf634941a3b",
    ("test", 10_000): "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
CARD = """---
license: unknown
task_categories:
- image-classification
size_categories:
- 10K<n<100K
dataset_info:
  config_name: plain_text
  features:
  - name: img
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
{names}
configs:
- config_name: plain_text
  default: true
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
---
# CIFAR-10{title}

{text}

Alex Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009
(https://www.cs.toronto.edu/~kriz/cifar.html). Its authors state no licence; they ask for a citation
of that report.
"""


def write_parquet(path: Path, images: list[bytes], labels: np.ndarray, names: list[str]) -> None:
    """Write the columns img (encoded bytes) and label (int [n]) as `datasets` does: an Image and a
    ClassLabel feature.

    images: content of n picture files. names: one a class.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"img": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("img", image_type), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = pa.array([{"bytes": image, "path": None} for image in images], image_type)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table([rows, pa.array(labels, pa.int64())], schema=schema), path, row_group_size=1000
    )


def write_card(folder: Path, title: str, text: str) -> None:
    """Write README.md, with the configuration and the class names that `datasets` reads."""
    names = "\n".join(f"          '{label}': {name}" for label, name in enumerate(CLASSES))
    (folder / "README.md").write_text(
        CARD.format(names=names, title=title, text=text), encoding="utf-8"
    )
