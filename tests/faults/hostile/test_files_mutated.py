"""Sound data sets and cards with seeded mutations: they are read, or end in one line, and soon."""

import gzip
import io
import os
import pickle
import random
import resource
import tarfile
import time

import numpy as np
import pytest
from helpers import data_sets
from helpers.made_up_run import METRICS, card_of
from helpers.pictures import class_folders, encoded, loaded, noise

from hf_cifar.data.cifar10 import CLASSES
from hf_cifar.data.sources import archives
from hf_cifar.errors import UserError
from hf_cifar.evaluation.card_claim import card_claim

# HF_CIFAR_FUZZ_SEED=1000 tries other inputs than the usual ones.
FIRST_SEED = int(os.environ.get("HF_CIFAR_FUZZ_SEED", "0"))
ROUNDS, INPUTS_A_ROUND = 10, 30


def mutate(content, rng):
    """Return the bytes with a few of them changed, removed, doubled or moved."""
    content = bytearray(content)
    if rng.random() < 0.4:  # so little that many files can still be read
        content[rng.randrange(len(content))] = rng.choice(b"0129,./ abz\n")
        return bytes(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(max(1, len(content)))
        end = at + rng.choice([1, 1, 1, 4, rng.randint(1, 400)])
        kind = rng.random()
        if kind < 0.5:
            content[at:end] = rng.randbytes(min(end, len(content)) - at)
        elif kind < 0.65:
            del content[at:end]
        elif kind < 0.8:
            content[at:at] = content[at:end] * rng.choice([1, 2, 50])
        elif kind < 0.9:
            content[at : at + 8] = rng.choice([b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f" * 2])
        else:
            del content[at:]
    return bytes(content)


def cifar_pickles():
    """Return the files of the python version of CIFAR-10 with 20 images in each."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    batch = pickle.dumps({b"labels": [i % 10 for i in range(20)], b"data": pixels}, 2)
    files = dict.fromkeys((*archives.LAYOUTS[0].files("train")[:-1], "test_batch"), batch)
    files["batches.meta"] = pickle.dumps({b"label_names": [c.encode() for c in CLASSES]}, 2)
    return files


def write_pickles(folder, rng):
    for number, (name, content) in enumerate(cifar_pickles().items()):
        (folder / name).write_bytes(mutate(content, rng) if number == 0 else content)


def write_archive(folder, rng):
    """Write the archive; it is mutated before or after it is compressed."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in cifar_pickles().items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    content = tar.getvalue()
    inside = rng.random() < 0.5
    content = gzip.compress(mutate(content, rng) if inside else content, 1)
    (folder / "cifar-10-python.tar.gz").write_bytes(content if inside else mutate(content, rng))
    return folder / "cifar-10-python.tar.gz"


def write_parquet(folder, rng):
    path = folder / "train-0.parquet"
    data_sets.parquet(path, [i % 2 for i in range(12)], names=["cat", "dog"])
    path.write_bytes(mutate(path.read_bytes(), rng))


def write_pictures(folder, rng):
    class_folders(folder)
    form = rng.choice(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
    content = mutate(encoded(noise(1, 40, 30), form), rng)
    (folder / "cat" / f"odd.{form.lower()}").write_bytes(content)


def write_table_of_labels(folder, rng):
    class_folders(folder / "pictures")
    rows = [f"pictures/{name}/{i}.png,{name}\n" for name in ("cat", "dog") for i in range(6)]
    table = "file_name,label\n" + "".join(rows)
    (folder / "metadata.csv").write_bytes(mutate(table.encode(), rng))


WRITERS = [write_pickles, write_archive, write_parquet, write_pictures, write_table_of_labels]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + ROUNDS))
def test_mutated_data_sets_load_or_end_in_one_line(seed, tmp_path, monkeypatch):
    rng = random.Random(seed)
    refused = 0
    for number in range(INPUTS_A_ROUND):
        folder = tmp_path / f"data {number}"
        folder.mkdir()
        monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / f"cache {number}"))
        data_set = WRITERS[number % len(WRITERS)](folder, rng) or folder
        start = time.perf_counter()
        try:
            data = loaded(data_set)
            assert len(data.train.labels)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600
        assert time.perf_counter() - start < 10
    assert 0 < refused < INPUTS_A_ROUND
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6, "more than 4 GB"


@pytest.mark.slow
def test_mutated_cards_are_read_soon(tmp_path):
    rng = random.Random(FIRST_SEED)
    card = card_of(tmp_path / "run", METRICS).encode()
    claims = 0
    for _ in range(200):
        front = card.index(b"\n---\n")
        text = mutate(card[:front], rng) + card[front:]
        start = time.perf_counter()
        try:
            claims += card_claim(text.decode(errors="replace")) is not None
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
        assert time.perf_counter() - start < 2
    assert 0 < claims < 200
