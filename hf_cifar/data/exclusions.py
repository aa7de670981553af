"""Rows that an audit lists, to be left out of training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.errors import UserError
from hf_cifar.files import atomic_file

COLUMNS = (
    "split",
    "row",
    "file",
    "kind",
    "given",
    "suggested",
    "score",
    "other_split",
    "other_row",
    "exclude",
)
METADATA = b"hf_cifar"


def write_exclusions(
    path: Path, rows: Sequence[Mapping[str, Any]], fingerprints: Mapping[str, str]
) -> None:
    """Write audit.parquet: one row for each thing that an audit noticed, with COLUMNS.

    `exclude` says whether `exclude: audit.parquet` leaves the picture out of training.
    fingerprints: of the images that the rows of each split number.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    integer, text = pa.int64(), pa.string()
    types = {"row": integer, "other_row": integer, "score": pa.float64(), "exclude": pa.bool_()}
    schema = pa.schema([(name, types.get(name, text)) for name in COLUMNS])
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    table = table.replace_schema_metadata({METADATA: json.dumps(dict(fingerprints)).encode()})
    with atomic_file(path) as file:
        pq.write_table(table, file)


def read_exclusions(path: str, fingerprint: str) -> np.ndarray:
    """Return int64 [k], ascending: rows of the images of this fingerprint that the file excludes.

    Raises UserError for a file that can't be read, is of no audit, or of another data set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = Path(path).expanduser()
    try:
        table = pq.read_table(place)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"exclude: {path}: {reason}; name the audit.parquet of `hf-cifar audit`"
        ) from None
    noted = (table.schema.metadata or {}).get(METADATA)
    if noted is None or not {"split", "row", "exclude"} <= set(table.column_names):
        raise UserError(
            f"exclude: {path}: it is no file of `hf-cifar audit`; name its audit.parquet"
        )
    fingerprints = json.loads(noted)
    splits = {split for split, value in fingerprints.items() if value == fingerprint}
    if not splits:
        raise UserError(
            f"exclude: {path}: it lists pictures of another data set, or of this one before it"
            " changed; run `hf-cifar audit` on the data again"
        )
    rows = {
        row["row"]
        for row in table.select(["split", "row", "exclude"]).to_pylist()
        if row["exclude"] and row["split"] in splits
    }
    return np.array(sorted(rows), dtype=np.int64)
