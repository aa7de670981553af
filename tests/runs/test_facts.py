"""The facts of a run are its own."""

import subprocess
import sys

import numpy as np

CODE = """
import torch
from hf_cifar.reporting.provenance import peak_memory
print(peak_memory(torch.device("cpu"))["peak_host_memory_bytes"])
"""


def test_peak_memory_is_not_that_of_the_process_that_started_the_run():
    large = np.ones(150_000_000)  # 1.2 GB in this process while the other one starts
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert 1e8 < int(done.stdout) < large.nbytes
