"""Temperature scaling: calibrated probabilities from one fitted number."""

from __future__ import annotations

import numpy as np

from hf_cifar.evaluation.metrics import nll


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.05 to 20, by which logits are divided for the least likelihood loss of the
    labels (Guo et al. 2017, section 4.2). probabilities: float64 [N, C], by softmax. labels: int64
    [N].
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda t: nll(apply_temperature(probabilities, float(np.exp(t))), labels)["nll"],
        bounds=np.log([0.05, 20.0]),
        method="bounded",
    )
    return float(np.exp(found.x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """float64 [N, C]: the softmax of the same logits divided by the temperature; log-probabilities
    are logits too.
    """
    logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
