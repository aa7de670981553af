"""Make the sample that the package carries: python scripts/make_sample.py FOLDER [OUT].

FOLDER holds all of CIFAR-10 in the Hub's layout (`hf-cifar data fetch`). The first 200 train and
100 test images of each class are taken in the order of the data set, their encoded bytes as they
are.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from hf_cifar.data.cifar10 import CLASSES, write_card
from hf_cifar.data.hub_layout import write_parquet
from hf_cifar.data.sources.arrow_images import ArrowImages
from hf_cifar.data.sources.find import SAMPLE, find_source
from hf_cifar.errors import UserError

PER_CLASS = {"train": 200, "test": 100}
TEXT = """2,000 train and 1,000 test images, balanced: the first 200 and 100 of each class, in the
order of `uoft-cs/cifar10`, bit for bit. Made by `scripts/make_sample.py`; enough for a quickstart
and for tests, not for figures to compare with those on all of CIFAR-10."""


def main(folder: str, out: Path = SAMPLE) -> None:
    """Write OUT/plain_text/*.parquet and OUT/README.md."""
    source = find_source(folder)
    with tempfile.TemporaryDirectory() as scratch:
        for split, count in PER_CLASS.items():
            room = Path(scratch) / split
            room.mkdir()
            images = source.open(split, room)
            if not isinstance(images, ArrowImages) or images.label_names != CLASSES:
                raise UserError(f"{folder} is not CIFAR-10 in the Hub's layout")
            first = [np.flatnonzero(images.labels == label)[:count] for label in range(10)]
            rows = np.sort(np.concatenate(first))
            encoded = [images.encoded(row) for row in rows.tolist()]
            path = out / "plain_text" / f"{split}-00000-of-00001.parquet"
            write_parquet(path, encoded, images.labels[rows], CLASSES)
            print(f"{path}: {len(rows)} images, {path.stat().st_size / 1e6:.2f} MB")
    write_card(out, ": a sample", TEXT)


if __name__ == "__main__":
    main(sys.argv[1], *(Path(out) for out in sys.argv[2:]))
