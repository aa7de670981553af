"""Entries of the feature cache: what killed processes left is removed."""

import os
import time

import numpy as np
import psutil

from hf_cifar.features.store import entry_writer, load_entry


def test_what_killed_processes_left_is_removed(tmp_path):
    running, ended = os.getpid(), max(psutil.pids()) + 100_000
    for name, seconds_ago in (
        (f"a.0-{ended}.tmp", 100),
        (f"b.0-{ended}.tmp", 5),
        (f"c.1-{running}.tmp", 100),
        (f"d.1-{running}.tmp", 4000),
    ):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - seconds_ago,) * 2)
    (tmp_path / "whole.npy").write_bytes(b"")
    with entry_writer(tmp_path / "new.npy", (2,), np.float32) as write:
        write(np.zeros(2, np.float32).data)
    left = sorted(path.name.split(".")[0] for path in tmp_path.iterdir())
    assert left == ["b", "c", "new", "whole"]
    assert load_entry(tmp_path / "new.npy", (2,)).tolist() == [0, 0]
