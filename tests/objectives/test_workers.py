"""How many processes decode pictures of many sizes."""

from __future__ import annotations

import subprocess
import sys

from hf_cifar.distributed import cores_for_each_process, usable_cores

COUNT = """
import os
from hf_cifar.distributed import cores_for_each_process, usable_cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(usable_cores(), cores_for_each_process())
"""


def test_cores_are_those_that_a_process_may_use(monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    answer = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    assert answer.stdout.split() == ["1", "1"], answer.stderr


def test_the_processes_of_a_machine_share_its_cores(monkeypatch) -> None:
    cores = usable_cores()
    for processes, share in ((1, cores), (cores, 1), (2 * cores, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert cores_for_each_process() == share
