"""Fashion-MNIST, from the Debian package `dataset-fashion-mnist`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hf_cifar.data.decode_split import in_order
from hf_cifar.data.hub_layout import png, write_card, write_parquet
from hf_cifar.data.idx_files import read_idx
from hf_cifar.data.package_clients import fetch_debian_package
from hf_cifar.errors import UserError

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
CLASSES = [  # as the Hub's zalando-datasets/fashion_mnist calls them
    "T - shirt / top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
FILES = {"train": "train", "test": "t10k"}
SHA256 = {  # of the unpacked files
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
TEXT = f"""Pictures of garments, 28 x 28 px, grey: 60,000 to train on and 10,000 to test, unpacked
from the Debian package `{PACKAGE}`, lossless and in its order. MIT licence, copyright 2017 Zalando
SE.

Han Xiao, Kashif Rasul and Roland Vollgraf, *Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms*, 2017 (https://arxiv.org/abs/1708.07747)."""
REMEDY = (
    f"on Debian or Ubuntu with a network, run `apt-get update` and `apt-get install {PACKAGE}` as"
    " root, then this command again"
)


def fetch(folder: Path, scratch: Path) -> None:
    """Write all of Fashion-MNIST to `folder`, from the package where it is installed, or else
    through apt-get. Raises UserError.

    scratch: an empty folder for downloads.
    """
    files = INSTALLED
    if not INSTALLED.is_dir():
        fetch_debian_package(PACKAGE, scratch, REMEDY)
        files = scratch / INSTALLED.relative_to("/")
    write(files, folder)


def write(files: Path, folder: Path, sha256: Mapping[str, str] = SHA256) -> None:
    """Write the IDX files in `files` to `folder` in the Hub's layout.

    sha256: hex of each file's unpacked content. Raises UserError for a file that is missing,
    damaged or another.
    """
    for split, prefix in FILES.items():
        pixels = _read(files, f"{prefix}-images-idx3-ubyte", sha256)
        labels = _read(files, f"{prefix}-labels-idx1-ubyte", sha256).astype(np.int64)
        images = list(in_order(png, pixels))
        path = folder / "fashion_mnist" / f"{split}-00000-of-00001.parquet"
        write_parquet(path, images, labels, CLASSES, image_column="image")
    write_card(
        folder,
        title="Fashion-MNIST",
        text=TEXT,
        license="mit",
        size="10K<n<100K",
        names=CLASSES,
        config="fashion_mnist",
        image_column="image",
    )


def _read(files: Path, name: str, sha256: Mapping[str, str]) -> np.ndarray:
    array, content = read_idx(files / f"{name}.gz")
    if (digest := hashlib.sha256(content).hexdigest()) != sha256[name]:
        raise UserError(
            f"{name}.gz: sha256 {digest} of its content is not Fashion-MNIST's; install the package"
            f" {PACKAGE} again"
        )
    return array
