"""CIFAR archives that mean harm: no attacker's code, memory or time, and one line as an answer."""

import io
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from helpers.pictures import loaded

from hf_cifar.data.cifar10 import CLASSES
from hf_cifar.data.sources import archives, cifar_pickle
from hf_cifar.data.sources.cifar_pickle import UnsafePickle, read_cifar_pickle
from hf_cifar.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
BATCH = {b"labels": [i % 10 for i in range(20)], b"data": PIXELS}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


def unpacked(folder, **files):
    """Write the python version of CIFAR-10; `files` replace the contents of some."""
    folder.mkdir()
    content = {name: pickle.dumps(BATCH, 2) for name in archives.LAYOUTS[0].files("train")[:-1]}
    content["test_batch"] = content["data_batch_1"]
    content["batches.meta"] = pickle.dumps({b"label_names": [c.encode() for c in CLASSES]}, 2)
    for name, data in (content | files).items():
        (folder / name).write_bytes(data)
    return folder


def one_line(folder):
    """Return the one line that loading ends with, which takes less than ten seconds."""
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        loaded(folder)
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


class Calls:
    """Pickles as a call of `function` with `arguments`, and then of `__setstate__` with `state`."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state) if state else (function, arguments)

    def __reduce__(self):
        return self.reduced


def dtype_that_is_built_twice():
    """A structured dtype whose object flags are cleared and set again round an array's making.

    With numpy's own reconstructors, freeing the array follows a pointer of the attacker's.
    """
    fields = {"x": (np.dtype("O"), 0)}
    flagged = (3, "|", None, ("x",), fields, 8, 1, 0x3F)
    cleared = (*flagged[:-1], 0)
    dtype = Calls(np.dtype, "V8", False, True, state=cleared)
    array = Calls(
        np._core.multiarray._reconstruct,
        np.ndarray,
        (0,),
        b"b",
        state=(1, (1,), dtype, False, b"\x41" * 8),
    )
    return {b"data": array, b"labels": [0], b"again": Calls(np.dtype, "V8", state=flagged)}


def test_a_dtype_that_is_built_twice(tmp_path):
    data = pickle.dumps(dtype_that_is_built_twice(), 2)
    assert "it calls numpy dtype in a way" in one_line(unpacked(tmp_path / "c", data_batch_2=data))


@pytest.mark.parametrize(
    "hostile",
    [
        Calls(os.system, "touch RAN"),
        Calls(eval, "open('RAN', 'w')"),
        Calls(getattr, "x", "join"),
        Calls(np.load, "x.npy"),
        Calls(np.ndarray, (2**40,)),
        Calls(bytes, 2**33),
        Calls(np.dtype, "O"),
        Calls(np.dtype, "U100"),
        Calls(np._core.multiarray._reconstruct, np.ndarray, (2**40,), b"b"),
    ],
    ids=lambda hostile: getattr(hostile.reduced[0], "__name__", "?"),
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_that_would_call_something(tmp_path, monkeypatch, hostile, protocol):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({b"data": hostile, b"labels": []}, protocol)
    message = one_line(unpacked(tmp_path / "c", data_batch_2=data))
    assert "data_batch_2" in message and not (tmp_path / "RAN").exists()


def exponential_key():
    """A key of tuples within tuples, which takes 2**60 steps to hash."""
    deep = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    return b"\x80\x02})" + deep + b"K\x01s."


PICKLES = {
    "nothing": b"",
    "no dictionary": pickle.dumps([1], 2),
    "cut": pickle.dumps(BATCH, 2)[:-100],
    "a key that takes for ever to hash": exponential_key(),
    "a huge memo": b"\x80\x02N" + b"r" + (2**31 - 1).to_bytes(4, "little") + b".",
    "bytes of terabytes": b"\x80\x04\x8e" + (2**42).to_bytes(8, "little") + b"x.",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "a number of a million digits": b"\x80\x02I" + b"9" * 1_000_000 + b"\n.",
    "a million tuples": b"\x80\x02" + b")" * 1_200_000 + b".",
    "a persistent id": b"\x80\x02U\x01aQ.",
    "an extension": b"\x80\x02\x82\x01.",
    "the same text encoded a thousand times": (
        b"\x80\x02c_codecs\nencode\nq\x00X\x40\x42\x0f\x00"
        + b"a" * 1_000_000
        + b"q\x01U\x06latin1q\x020"
        + (b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R" * 1000)
        + b"."
    ),
    "a label of forty digits": pickle.dumps(BATCH | {b"labels": [10**40] * 20}, 2),
    "labels that are texts": pickle.dumps(BATCH | {b"labels": ["a"] * 20}, 2),
    "an array of floats": pickle.dumps(BATCH | {b"data": PIXELS.astype(np.float32)}, 2),
    "an array in columns": pickle.dumps(BATCH | {b"data": np.asfortranarray(PIXELS)}, 2),
    "an array of one dimension": pickle.dumps(BATCH | {b"data": PIXELS.ravel()}, 2),
    "a shape that lies": pickle.dumps(BATCH, 2).replace(
        b"K\x14M\x00\x0c\x86", b"K\x15M\x00\x0c\x86"
    ),
    "20,000 lists within lists": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_with_something_wrong(tmp_path, name):
    message = one_line(unpacked(tmp_path / "c", data_batch_2=PICKLES[name]))
    assert "data_batch_2" in message and "download the archive again" in message


def test_names_that_are_no_names(tmp_path):
    for i, names in enumerate((3, [3], [[b"a"]], {b"a": 1})):
        data = pickle.dumps({b"label_names": names}, 2)
        folder = unpacked(tmp_path / f"c{i}", **{"batches.meta": data})
        assert "batches.meta has no label_names" in one_line(folder)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_python_and_numpy_write_is_read(protocol):
    batch = BATCH | {b"batch_label": b"one", b"filenames": [b"a.png"] * 20, "text": "\u00e9"}
    found = read_cifar_pickle(pickle.dumps(batch, protocol))
    assert np.array_equal(found["data"], PIXELS) and found["labels"] == BATCH[b"labels"]
    assert found["batch_label"] == b"one" and found["text"] == "\u00e9"
    assert found["filenames"] == [b"a.png"] * 20


def test_what_python_2_wrote_is_read():
    """A batch in the operations of the original archives, which Python 3 doesn't write."""
    content = PIXELS[:2].tobytes()
    data = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x03oneq\x03U\x06labelsq\x04]q\x05(K\x06K\x09e"
        b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85"
        b"q\x09U\x01bq\x0a\x87q\x0bRq\x0c(K\x01K\x02M\x00\x0c\x86q\x0dcnumpy\ndtype\nq\x0eU\x02u1"
        b"q\x0fK\x00K\x01\x87q\x10Rq\x11(K\x03U\x01|q\x12NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
        b"tq\x13b\x89T" + len(content).to_bytes(4, "little") + content + b"q\x14tq\x15bu."
    )
    pickletools.dis(data, out=io.StringIO())  # it is a good pickle
    found = read_cifar_pickle(data)
    assert found["labels"] == [6, 9] and np.array_equal(found["data"], PIXELS[:2])


def test_operations_that_make_objects_are_refused():
    refused = set()
    for operation in pickletools.opcodes:
        try:
            cifar_pickle._Machine().step(operation.name, None)
        except UnsafePickle:
            refused.add(operation.name)
        except Exception:
            continue  # it lacks what it works on
    assert refused >= {
        *("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "BINPERSID"),
        *("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"),
    }
    assert not refused & {"GLOBAL", "REDUCE", "BUILD", "BINSTRING", "SETITEMS"}


def tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content) if isinstance(content, bytes) else content
            file.addfile(
                info, io.BytesIO(content) if isinstance(content, bytes) else Zeros(content)
            )
    return path


class Zeros(io.RawIOBase):
    def __init__(self, size):
        self.left = size

    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


def header(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()


@pytest.mark.parametrize("name", ["data_batch_1", "other"])
def test_a_member_of_gigabytes_is_not_even_read(tmp_path, name):
    """Its header is all that there is of it."""
    (tmp_path / "a.tar").write_bytes(header(name, 2**28 + 1))
    assert f"{name} has 268 MB, more than CIFAR's" in one_line(tmp_path / "a.tar")


def test_members_that_are_gigabytes_together(tmp_path):
    many = tar(tmp_path / "b.tar", {f"other {i}": 2**26 for i in range(9)}, "w")
    assert "it unpacks to over 537 MB" in one_line(many)


def test_a_header_of_gigabytes(tmp_path):
    """A pax header is read as a whole by tarfile, however long it says that it is."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(2**20))
    assert "a.tar" in one_line(tmp_path / "a.tar")


MEMORY = """
import sys
from pathlib import Path
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe
try:
    load_data(Recipe(dataset_name=sys.argv[1]))
except UserError as error:
    print([line.split()[1] for line in open("/proc/self/status") if line[:5] == "VmHWM"][0])
"""


def test_memory_stays_bounded(tmp_path):
    """What a hostile archive can make a process hold."""
    bombs = [
        tar(tmp_path / "a.tar", {f"other {i}": 2**26 for i in range(9)}, "w"),
        unpacked(tmp_path / "c", data_batch_1=PICKLES["a huge memo"]),
        unpacked(tmp_path / "d", data_batch_1=PICKLES["the same text encoded a thousand times"]),
    ]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for bomb in bombs:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(bomb)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 300_000  # kB


def test_a_name_that_would_leave_the_folder(tmp_path):
    """Nothing is ever unpacked to the disk, so no name of a member can point anywhere."""
    files = {f"../../{name}": pickle.dumps(BATCH, 2) for name in archives.LAYOUTS[0].files("train")}
    files["../../batches.meta"] = pickle.dumps({b"label_names": [b"x"] * 10}, 2)
    files["../../test_batch"] = files["../../data_batch_1"]
    path = tar(tmp_path / "a.tar.gz", files)
    before = sorted(tmp_path.rglob("*"))
    assert len(loaded(path).train) == 100
    assert sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts) == before
