"""Temperature scaling: calibrated probabilities from one fitted number."""

from __future__ import annotations

import numpy as np

from hf_cifar.evaluation.metrics import nll

TEMPERATURES = (0.05, 20.0)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature, 0.05 to 20, that makes the labels most likely when the logits are
    divided by it (Guo et al. 2017, section 4.2).

    probabilities: float64 [N, C], by softmax. labels: int64 [N].
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return nll(apply_temperature(probabilities, float(np.exp(log_temperature))), labels)["nll"]

    best = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(best.x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return float64 [N, C]: the softmax of the same logits divided by the temperature.

    Log-probabilities stand in for the logits, from which they differ by a number a row.
    """
    logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
