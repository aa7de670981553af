"""`hf-cifar monitor`: what new pictures without labels say about a finished run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.evaluation.drift import drift_p_value
from hf_cifar.evaluation.estimated_accuracy import accuracy_by_confidence, accuracy_by_transport
from hf_cifar.evaluation.known_pictures import (
    KnownPictures,
    compute_known,
    features_of,
    freeze_classifier,
    read_known,
)
from hf_cifar.evaluation.new_pictures import load_pictures
from hf_cifar.evaluation.reject import Rejecter, choose_reject
from hf_cifar.evaluation.target_data import target_recipe

SHARE = 0.05  # of validation pictures that count as strangers, where nothing was calibrated
FEWEST = 20  # new pictures
WORST = 10  # that are named


def monitor(model: str, pictures: str, p: float) -> dict[str, Any]:
    """Return `p_value` and `drift`; `estimated_accuracy`, where the classes come as often as in
    validation, and `estimated_accuracy_other_mix`, where they don't; the share of `strangers`; and
    `worst`, the pictures that look least like what the model knows.

    model: a finished run; what `hf-cifar calibrate` stored with it is used, else its data is read
    again. pictures: a folder, or a data set. p: below it, there is drift.
    Raises UserError for a run without validation pictures, and for fewer than 20 new ones.
    """
    classifier = load_classifier(model)
    new, names = load_pictures(pictures, classifier.pixel_range)
    if len(new) < FEWEST:
        raise UserError(f"{pictures}: {len(new)} pictures say too little; name {FEWEST} at least")
    frozen = freeze_classifier(classifier)
    stored = read_known(classifier)
    if stored is None:
        stored = compute_known(classifier, target_recipe(model, None, {}), frozen)
    if stored.reject is None and len(classifier.labels) > 2:
        stored = choose_reject(stored, SHARE, model)
    return compare(stored, features_of(frozen, new), names, p)


def compare(
    stored: KnownPictures, features: torch.Tensor, names: list[str], p: float
) -> dict[str, Any]:
    """Return what `monitor` says about the features, float32 [n, D], of pictures of these names."""
    known = stored.known
    before = torch.addmm(known.bias, stored.validation, known.weight.T)
    logits = torch.addmm(known.bias, features, known.weight.T)
    correct = (before.argmax(1) == stored.labels).numpy()
    p_value = drift_p_value(stored.validation, features)
    result: dict[str, Any] = {
        "p_value": p_value,
        "drift": p_value < p,
        "estimated_accuracy": accuracy_by_transport(before, stored.labels, logits),
        "estimated_accuracy_other_mix": accuracy_by_confidence(before, correct, logits),
        "validation_accuracy": float(correct.mean()),
        "strangers": None,
        "pictures": len(features),
        "worst": [],
    }
    if stored.reject is not None:
        is_stranger, strangeness = Rejecter(stored).judge(features)
        result["strangers"] = float(is_stranger.mean())
        worst = np.argsort(-strangeness, kind="stable")[:WORST]
        result["worst"] = [
            {"picture": names[place], "strangeness": float(strangeness[place])} for place in worst
        ]
    return result
