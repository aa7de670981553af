"""A finished model on its device with its own image processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.models.inspect_repo import fetch_model, resolve_model
from hf_cifar.models.processors import evaluation_processor
from hf_cifar.training.precision import keep_freed_memory


@dataclass(frozen=True)
class Classifier:
    """A model on its device with its own image processor."""

    model: Any
    transforms: Transforms
    device: torch.device
    labels: list[str]


def load_classifier(name: str) -> Classifier:
    """The model of a run folder, a model folder or a Hub id (with @revision if wanted). Raises
    UserError.
    """
    folder, _ = fetch_model(*resolve_model(name))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    try:
        model = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: not a model that transformers loads: {str(error).splitlines()[0][:160]}"
        ) from None
    if type(processor).__name__ == "TimmWrapperImageProcessor":  # works on PIL images one at a time
        processor = evaluation_processor(
            processor, processor.data_config["input_size"][-1], center_crop=True
        )
    shape = processor(images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8), return_tensors="pt")[
        "pixel_values"
    ].shape
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    return Classifier(model.eval().to(device), Transforms(processor, shape[-1]), device, labels)


@torch.inference_mode()
def probabilities(
    classifier: Classifier,
    split: Split,
    *,
    batch_size: int,
    bf16: bool,
    channels_last: bool = False,
    flip: bool = False,
) -> np.ndarray:
    """float64 [n, C]: softmax of the model's logits for each image of the split; `flip` averages
    each with its mirror.
    """
    batches = ImageBatches(
        split, classifier.transforms, training=False, channels_last=channels_last
    )
    found = []
    for start in range(0, len(batches), batch_size):
        tickets = list(range(start, min(start + batch_size, len(batches))))
        inputs = batches.model_inputs(batches.__getitems__(tickets), classifier.device)
        views = [inputs["pixel_values"]] + ([inputs["pixel_values"].flip(-1)] if flip else [])
        with torch.autocast(classifier.device.type, torch.bfloat16, enabled=bf16):
            logits = [classifier.model(pixel_values=v).logits for v in views]
        found.append(torch.stack([x.double().softmax(-1) for x in logits]).mean(0))
    return torch.cat(found).cpu().numpy()  # the one wait for the device
