"""A pushed commit downloaded again and compared with the run, file by file and answer by answer."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from hf_cifar.hub.retry import retried


@dataclass(frozen=True)
class FileHashes:
    """A file's two names on the Hub: git's blob sha1, and the sha256 of large files."""

    sha1: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileHashes:
        sha1, sha256 = hashlib.sha1(f"blob {path.stat().st_size}\0".encode()), hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha1.update(block)
                sha256.update(block)
        return cls(sha1.hexdigest(), sha256.hexdigest())

    def __contains__(self, other: object) -> bool:
        return other in (self.sha1, self.sha256)


def read_back(
    api: HfApi, run: Path, to: str, commit: str, files: dict[str, int], say: Callable[[str], None]
) -> None:
    """Downloads the commit into an empty cache and holds it against the run, file by file and
    answer by answer.
    """
    with tempfile.TemporaryDirectory() as cache:
        folder = Path(
            retried(
                "reading back",
                lambda: snapshot_download(
                    to,
                    revision=commit,
                    cache_dir=cache,
                    token=api.token,
                    allow_patterns=list(files),
                ),
                say,
            )
        )
        for path in files:
            if not (folder / path).is_file() or FileHashes.of(folder / path) != FileHashes.of(
                run / path
            ):
                raise OSError(
                    f"{path} came back from the Hub with another checksum than it was sent with"
                )
        here, there = _answers(run), _answers(folder)
    for mine, theirs in zip(here, there, strict=True):
        same = mine.keys() == theirs.keys() and all(abs(mine[k] - theirs[k]) < 1e-4 for k in mine)
        if not same:
            raise OSError("the model from the Hub answers otherwise than the one in the run folder")
    say(
        f"checked: {len(files)} files have the checksums sent, and pipeline answers alike on {len(here)} images"
    )


def _answers(folder: Path) -> list[dict[str, float]]:
    """What `pipeline` says on the test images: label -> score, one dict an image."""
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(folder), device="cpu", top_k=None)
    return [
        {answer["label"]: answer["score"] for answer in classify(image)} for image in _test_images()
    ]


def _test_images() -> list[Any]:
    """Three PIL images [32, 32, RGB]: test rows of the packaged sample, or made ones where it is
    not there.
    """
    import numpy as np
    from PIL import Image

    for path in sorted(
        (Path(__file__).parents[1] / "sample" / "plain_text").glob("test-*.parquet")
    ):
        import pyarrow.parquet as parquet

        rows = parquet.read_table(path, columns=["img"]).slice(0, 3).to_pylist()
        return [Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB") for row in rows]
    ramp = np.add.outer(np.arange(32) * 8, np.arange(32)).astype(np.uint8)
    return [
        Image.fromarray(np.stack([ramp + shift, ramp.T, 255 - ramp], axis=-1))
        for shift in (0, 60, 120)
    ]
