"""A model folder whose model says "none of these" to every picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from helpers.tiny_models import edit_config

from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.evaluation.known_pictures import KnownPictures, Reject, write_known
from hf_cifar.evaluation.stranger_scores import Known
from hf_cifar.models.structure import head


def reject_everything(folder: Path) -> None:
    """Write beside a model with ten labels what `hf-cifar calibrate` would, with a threshold that
    no probability reaches.
    """
    _, linear = head(load_classifier(str(folder)).model)
    features = torch.randn(20, linear.in_features, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 10
    reject = Reject("softmax", threshold=2.0, share=0.05, aurocs={})
    known = Known(features, labels, linear.weight, linear.bias)
    write_known(KnownPictures(known, features.clone(), labels.clone(), reject), folder)
    edit_config(folder, reject=dataclasses.asdict(reject))
