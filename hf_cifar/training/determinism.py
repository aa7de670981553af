"""Runs that end with the same bits on a GPU, too (`full_determinism`).

The fastest CUDA kernels add numbers in the order in which threads finish, and cuDNN chooses its
kernels by timing them. Both are forbidden here, at some cost in speed.
"""

from __future__ import annotations

import os

import torch

from hf_cifar.errors import UserError

REFUSED = "does not have a deterministic implementation"  # torch's words


def use_deterministic_kernels() -> None:
    """Let torch use only kernels that give the same bits each time, for the rest of the process.

    Call this before the first matrix product on a GPU: cuBLAS reads its workspace then. The
    Trainer's own `full_determinism` comes too late for that, and sets a smaller workspace.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def missing_kernel(error: RuntimeError) -> UserError | None:
    """Return what to tell the user where torch refused an operation that has no deterministic
    kernel, or None for another error.
    """
    if REFUSED not in str(error):
        return None
    operation = str(error).split(REFUSED)[0].strip().split()[-1]
    return UserError(
        f"full_determinism: {operation} has no deterministic kernel on this device; leave the key"
        " out, or what needs the operation (image_size_schedule resizes position embeddings, for"
        " example)"
    )
