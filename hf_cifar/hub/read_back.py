"""A pushed commit downloaded again and compared with the run, file by file and answer by answer."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from hf_cifar.hub.repo import FileHashes, Repo
from hf_cifar.hub.run_files import Files

TOLERANCE = 1e-4  # of a probability, between two loads of the same weights


def read_back(repo: Repo, commit: str, files: Files, run: Path) -> None:
    """Download `files` of a commit into an empty cache and compare them, and the answers of the
    model in a model repo, with those of the run.

    Raises OSError where they differ.
    """
    with tempfile.TemporaryDirectory() as cache:
        for path, file in files.items():
            # One by one and in this thread, so that a signal ends it at once.
            downloaded = repo.retry("reading back", _download(repo, commit, path, cache))
            folder = downloaded.parents[path.count("/")]
            if FileHashes.of(downloaded) != FileHashes.of(file):
                raise OSError(f"{path} came back from the Hub with another checksum than was sent")
        checked = f"checked: {len(files)} files have the checksums that were sent"
        if repo.kind != "model":
            repo.retry.say(checked)
            return
        for expected, answer in zip(_answers(run), _answers(folder), strict=True):
            if expected.keys() != answer.keys() or any(
                abs(expected[label] - answer[label]) >= TOLERANCE for label in expected
            ):
                raise OSError("the model on the Hub gives other answers than the run's")
    repo.retry.say(
        f"{checked}, and `pipeline` gives the same answers to {len(_test_images())} images"
    )


def _download(repo: Repo, commit: str, path: str, cache: str) -> Any:
    return lambda: Path(
        hf_hub_download(
            repo.name,
            path,
            revision=commit,
            cache_dir=cache,
            token=repo.api.token,
            repo_type=repo.kind,
        )
    )


def _answers(folder: Path) -> Iterator[dict[str, float]]:
    """Yield the probability of each label for each test image, as `pipeline` gives them."""
    from transformers import pipeline

    classify = pipeline("image-classification", model=str(folder), device="cpu", top_k=None)
    for image in _test_images():
        yield {answer["label"]: answer["score"] for answer in classify(image)}


def _test_images() -> list[Any]:
    """Return three RGB images of 32 x 32 pixels from the test split of the packaged sample."""
    import pyarrow.parquet as pq
    from PIL import Image

    folder = Path(__file__).parents[1] / "sample" / "plain_text"
    table = pq.read_table(next(folder.glob("test-*.parquet")), columns=["img"])
    rows = table.slice(0, 3).to_pylist()
    return [Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB") for row in rows]
