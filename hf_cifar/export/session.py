"""ONNX graphs run by onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

ERRORS_ONLY = 3  # onnxruntime's number of the level


def open_session(model: Path | bytes, threads: int = 0) -> Any:
    """Return an `onnxruntime.InferenceSession` on the CPU.

    model: a file, or its bytes. threads: 0 for as many as there are cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def logits_of(session: Any, inputs: np.ndarray) -> np.ndarray:
    """Return float32 [B, C] for the only input of a graph: float32 [B, 3, S, S], or uint8
    [B, H, W, 3] for one with preprocessing.
    """
    (name,) = (one.name for one in session.get_inputs())
    return session.run(["logits"], {name: inputs})[0]
