"""Picture folders that mean harm, or are odd: what is read is a regular file of a known format."""

import csv
import os
import shutil
import struct
import time
import zlib

import numpy as np
import PIL.Image
import pytest
from helpers.pictures import class_folders, encoded, loaded, noise

from hf_cifar.data.check import check
from hf_cifar.data.decode import FORMATS, MAX_PICTURE_BYTES, PICTURE_SUFFIXES, open_image
from hf_cifar.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


def one_line(folder, **keys):
    """Return the one line that loading ends with, which takes less than ten seconds."""
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        loaded(folder, **keys)
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


# ---- reads without end ----


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def terminal(path):
    path.symlink_to("/dev/tty")


def loop(path):
    path.symlink_to(path.name)


def sparse(path):
    with path.open("wb") as file:
        file.write(encoded(noise(0)))
        file.truncate(MAX_PICTURE_BYTES + 1)


def empty(path):
    path.write_bytes(b"")


READS = {
    pipe: "not a regular file",
    endless: "not a regular file",
    terminal: "",
    loop: "symbolic links",
    sparse: "more than the 403 MB that are read",
    empty: "it is empty",
}


@pytest.mark.parametrize("harm", READS)
@pytest.mark.parametrize("sizes", [((8, 6),), ((8, 6), (5, 7))], ids=["table", "files"])
def test_what_is_no_regular_file_is_a_bad_picture(tmp_path, harm, sizes):
    folder = class_folders(tmp_path / "data", sizes)
    harm(folder / "cat" / "x.png")
    message = one_line(folder)
    assert "cat/x.png cannot be read as an image" in message and READS[harm] in message
    data = loaded(folder, on_bad_image="skip")
    assert data.train.images.bad == ["cat/x.png"] and len(data.train) == 12
    (result,) = check(folder)
    assert not result.ok and "cat/x.png" in result.message


def test_a_card_and_a_table_that_are_pipes(tmp_path):
    folder = class_folders(tmp_path / "data")
    pipe(folder / "README.md")
    assert len(loaded(folder).train) == 12
    pipe(folder / "metadata.csv")
    assert len(loaded(folder).train) == 12
    (folder / "labels.csv").symlink_to("/dev/zero")
    assert len(loaded(folder).train) == 12


def test_links_that_lead_in_circles_are_called_that(tmp_path):
    folder = class_folders(tmp_path / "data")
    (folder / "cat" / "again").symlink_to(folder, target_is_directory=True)
    assert "is a link to a folder that it lies in; remove the link" in one_line(folder)
    (folder / "cat" / "again").unlink()
    (folder / "bird").symlink_to("bird")
    message = one_line(folder)
    assert "bird cannot be read (Too many levels of symbolic links); remove the link" in message
    assert "permission" not in message


def test_a_link_to_another_class_is_no_circle(tmp_path):
    folder = class_folders(tmp_path / "data")
    (folder / "dog too").symlink_to(folder / "dog")
    assert loaded(folder).label_names == ["cat", "dog", "dog too"]


# ---- formats ----


def test_postscript_in_a_png_never_reaches_ghostscript(tmp_path, monkeypatch):
    """PIL would start `gs`, which is put first on the path here to note that it ran."""
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gsc", "gswin64c"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {tmp_path / 'RAN'}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    folder = class_folders(tmp_path / "data")
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n%%EOF\n"
    )
    (folder / "cat" / "x.png").write_bytes(postscript)
    assert "cat/x.png cannot be read as an image (its content is no image)" in one_line(folder)
    assert not (tmp_path / "RAN").exists()


def test_every_format_is_one_that_pictures_come_in():
    """Each of them can be written here and is read back; no other reader of PIL is asked."""
    suffixes = {"JPEG2000": "jp2", "PPM": "ppm", "DIB": "dib"}
    pixels = noise(0, 16, 16)
    for form in FORMATS:
        if form in PIL.Image.SAVE:
            assert open_image(encoded(pixels, form)).size == (16, 16)
            assert f".{suffixes.get(form, form.lower())}" in PICTURE_SUFFIXES
    others = set(PIL.Image.OPEN) - set(FORMATS)
    assert {"EPS", "WMF", "FITS", "GRIB", "HDF5", "PSD", "ICNS"} <= others


# ---- pictures ----


def chunk(kind, content):
    data = kind + content
    return struct.pack(">I", len(content)) + data + struct.pack(">I", zlib.crc32(data))


def png(width, height, *chunks, bits=8, colour=2):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


PICTURES = {
    "a bomb of pixels": png(60_000, 60_000, chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "a side beyond all formats": png(2**31 - 1, 1, chunk(b"IDAT", b"")),
    "no pixels": png(0, 0, chunk(b"IDAT", b"")),
    "a text of gigabytes": png(
        8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26))), chunk(b"IDAT", b"")
    ),
    "content that is cut": encoded(noise(0, 64, 64))[:-30],
    "a checksum that lies": encoded(noise(0, 64, 64))[:-20] + bytes(20),
    "text": b"this is no picture",
    "a GIF without frames": b"GIF89a\x08\0\x06\0\0\0\0;",
    "a TIFF whose directory is itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "a BMP of negative size": b"BM"
    + struct.pack("<IIIIiiHH", 54, 0, 54, 40, -8, -8, 1, 24)
    + bytes(24),
    "a PPM of a billion digits": b"P6 " + b"9" * 100_000 + b" 1 255\n",
    "a QOI": b"qoif" + bytes(20),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("sizes", [((8, 6),), ((8, 6), (5, 7))], ids=["table", "files"])
def test_a_picture_with_something_wrong_is_named(tmp_path, name, sizes):
    folder = class_folders(tmp_path / "data", sizes)
    (folder / "cat" / "x.png").write_bytes(PICTURES[name])
    assert "cat/x.png cannot be read as an image" in one_line(folder)
    assert loaded(folder, on_bad_image="skip").train.images.bad == ["cat/x.png"]


@pytest.mark.slow
def test_pictures_that_are_changed_at_random(tmp_path):
    """A byte here, a cut there: each is read, or named in one line, and nothing else."""
    random = np.random.default_rng(0)
    forms = [form for form in FORMATS if form in PIL.Image.SAVE]
    outcomes = {"read": 0, "named": 0}
    for i in range(300):
        folder = class_folders(tmp_path / f"{i}", per_class=2)
        data = bytearray(encoded(noise(i, 24, 24), forms[i % len(forms)]))
        for _ in range(random.integers(1, 20)):
            data[random.integers(len(data))] = random.integers(256)
        cut = len(data) if i % 3 else random.integers(len(data))
        (folder / "cat" / "x.png").write_bytes(data[:cut])
        try:
            loaded(folder)
            outcomes["read"] += 1
        except UserError as error:
            assert "cat/x.png" in str(error) and "\n" not in str(error)
            outcomes["named"] += 1
        shutil.rmtree(folder)
    assert min(outcomes.values()) > 30, outcomes


# ---- tables beside pictures ----


@pytest.mark.parametrize("where", ["../secret.png", "{}/secret.png", "x/../../secret.png"])
def test_a_table_that_points_out_of_the_folder(tmp_path, where):
    PIL.Image.fromarray(noise(0)).save(tmp_path / "secret.png")
    folder = tmp_path / "data"
    folder.mkdir()
    PIL.Image.fromarray(noise(1)).save(folder / "a.png")
    rows = [["file_name", "label"], ["a.png", "cat"], [where.format(tmp_path), "dog"]]
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    message = one_line(folder)
    assert "line 3" in message and "leads out of the data set's folder" in message


TABLES = {
    "bytes": bytes(range(256)),
    "no rows": b"",
    "a field of megabytes": b"file_name,label\n" + b"a" * 10_000_000 + b",cat\n",
    "a quote without end": b'file_name,label\n"a.png,cat\n',
    "a null byte": b"file_name,label\na\0.png,cat\n",
    "one column": b"file_name\na.png\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_with_something_wrong(tmp_path, name):
    PIL.Image.fromarray(noise(1)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(TABLES[name])
    assert "metadata.csv" in one_line(tmp_path)


LINES = {
    "deep": b'{"file_name": "a.png", "label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no objects": b"[1]\n2\n",
    "digits": b'{"file_name": "a.png", "label": ' + b"9" * 5000 + b"}",
    "names": b'{"file_name": ["a.png"], "label": 1}',
}


@pytest.mark.parametrize("name", LINES)
def test_lines_with_something_wrong(tmp_path, name):
    PIL.Image.fromarray(noise(1)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(LINES[name])
    assert "metadata.jsonl" in one_line(tmp_path)


# ---- cards ----

CARDS = {
    "anchors that multiply": "a: &a [x, x]\n"
    + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
    )
    + "license: *y\n",
    "deep": "license: " + "[" * 20_000 + "]" * 20_000 + "\n",
    "features as a text": "dataset_info:\n  features: abc\n",
    "features of texts": "dataset_info:\n  features: [a, b, [c]]\n",
    "a list": "- a\n",
    "names as a number": "dataset_info:\n  features:\n  - name: label\n    dtype:\n"
    "      class_label: 7\n",
    "code": "license: !!python/object/apply:os.system ['touch RAN']\n",
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_with_something_wrong_says_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = class_folders(tmp_path / "data")
    (folder / "README.md").write_text(f"---\n{CARDS[name]}---\n# Card\n")
    start = time.monotonic()
    data = loaded(folder)
    assert data.license is None and len(data.train) == 12
    assert time.monotonic() - start < 10 and not (tmp_path / "RAN").exists()
