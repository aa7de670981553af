"""Data sets as the Hub has them: parquet files that `datasets` reads, and a card beside them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

CARD = """---
license: {license}
task_categories:
- image-classification
size_categories:
- {size}
dataset_info:
  config_name: {config}
  features:
{features}
configs:
- config_name: {config}
  default: true
  data_files:
  - split: train
    path: {config}/train-*
  - split: test
    path: {config}/test-*
---
# {title}

{text}
"""


def write_parquet(
    path: Path,
    images: list[bytes],
    labels: np.ndarray,
    names: list[str],
    *,
    image_column: str = "img",
    further: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """Write an image column (encoded bytes) and `label` (int [n]) as `datasets` does: an Image and
    a ClassLabel feature.

    images: content of n picture files. names: one a class. further: n values of each further
    column, all texts or all numbers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features: dict[str, Any] = {
        image_column: {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    fields = [(image_column, image_type), ("label", pa.int64())]
    rows = pa.array([{"bytes": image, "path": None} for image in images], image_type)
    columns = [rows, pa.array(labels, pa.int64())]
    for name, values in (further or {}).items():
        columns.append(pa.array(values))
        fields.append((name, columns[-1].type))
        kind = "string" if pa.types.is_string(columns[-1].type) else "float64"
        features[name] = {"dtype": kind, "_type": "Value"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns, schema=pa.schema(fields, metadata=metadata))
    pq.write_table(table, path, row_group_size=1000)


def write_card(
    folder: Path,
    *,
    title: str,
    text: str,
    license: str,
    size: str,
    names: list[str],
    config: str,
    image_column: str = "img",
    further: Mapping[str, str] | None = None,
) -> None:
    """Write README.md, with the configuration and the class names that `datasets` reads.

    size: the Hub's category, such as "10K<n<100K". config: the folder of the parquet files.
    further: the type ("string" or "float64") of each further column.
    """
    lines = [
        f"  - name: {image_column}",
        "    dtype: image",
        "  - name: label",
        "    dtype:",
        "      class_label:",
        "        names:",
        *(f"          '{label}': {name}" for label, name in enumerate(names)),
    ]
    for name, kind in (further or {}).items():
        lines += [f"  - name: {name}", f"    dtype: {kind}"]
    card = CARD.format(
        license=license,
        size=size,
        config=config,
        features="\n".join(lines),
        title=title,
        text=text,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def png(pixels: np.ndarray) -> bytes:
    """Return the PNG file of uint8 [H, W, 3], RGB, or [H, W], grey."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
