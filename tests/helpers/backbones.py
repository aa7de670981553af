"""Backbones of tiny models, and their answers: by the project's evaluation and by `pipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import torch
from helpers.runs import LABELS
from transformers import pipeline

from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.models.load import Backbone, load_backbone
from hf_cifar.models.structure import head
from hf_cifar.recipe.fields import ModelKeys


def load(path: Path | str, **keys: Any) -> Backbone:
    """Return the backbone of a folder with a new head for CIFAR-10's classes."""
    return load_backbone(ModelKeys(model_name_or_path=str(path), **keys), LABELS)


def randomise_head(model: Any) -> None:
    """Give the model a head whose answers tell images apart, and set it to evaluation."""
    torch.manual_seed(1)
    with torch.no_grad():
        head(model)[1].weight.normal_(0, 0.2)
    model.eval()


def save(backbone: Backbone, folder: Path) -> Path:
    """Write model and processor into a folder, as a run does, and return it."""
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder


def project_logits(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    """Return float32 [B, C] for uint8 images [B, 3, H, W], as the project evaluates."""
    with torch.inference_mode():
        pixels = Transforms(backbone.processor, backbone.image_size).evaluate(images)
        return backbone.model(pixel_values=pixels).logits


def pipeline_logits(
    folder: Path, images: torch.Tensor | list[torch.Tensor], batch_size: int = 1
) -> tuple[torch.Tensor, list[str]]:
    """Return float32 [B, C] and the best labels that `pipeline` answers for uint8 images."""
    classify = pipeline(
        "image-classification",
        model=str(folder),
        function_to_apply="none",
        top_k=len(LABELS),
        batch_size=batch_size,
    )
    answers = classify([PIL.Image.fromarray(i.permute(1, 2, 0).numpy()) for i in images])
    scores = [{a["label"]: a["score"] for a in answer} for answer in answers]
    logits = torch.tensor([[score[label] for label in LABELS] for score in scores])
    return logits, [answer[0]["label"] for answer in answers]
