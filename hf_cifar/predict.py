"""A finished model put to use: scored on a split, asked about pictures, held against its card."""

from __future__ import annotations

import http.client
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_cifar import hardware
from hf_cifar.batches import ImageBatches
from hf_cifar.data import Split, load_split
from hf_cifar.decode import BadImage, open_image, to_rgb
from hf_cifar.errors import UserError
from hf_cifar.metrics import classification_metrics
from hf_cifar.model_repo import fetch_model, resolve_model
from hf_cifar.processors import evaluation_processor
from hf_cifar.recipe import Recipe, load_recipe
from hf_cifar.transforms import Transforms
from hf_cifar.verify import map_labels, verify

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class Classifier:
    """A model on its device with its own image processor."""

    model: Any
    transforms: Transforms
    device: torch.device
    labels: list[str]


def load_classifier(name: str) -> Classifier:
    """The model of a run folder, a model folder or a Hub id (with @revision if wanted). Raises UserError."""
    folder, _ = fetch_model(*resolve_model(name))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        hardware.keep_freed_memory()
    try:
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: not a model that transformers loads: {str(error).splitlines()[0][:160]}") from None
    if type(processor).__name__ == "TimmWrapperImageProcessor":  # works on PIL images one at a time
        processor = evaluation_processor(processor, processor.data_config["input_size"][-1], center_crop=True)
    shape = processor(images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8), return_tensors="pt")["pixel_values"].shape
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    return Classifier(model.eval().to(device), Transforms(processor, shape[-1]), device, labels)


@torch.inference_mode()
def probabilities(
    classifier: Classifier, split: Split, *, batch_size: int, bf16: bool, channels_last: bool = False, flip: bool = False
) -> np.ndarray:
    """float64 [n, C]: softmax of the model's logits for each image of the split; `flip` averages each with its mirror."""
    batches = ImageBatches(split, classifier.transforms, training=False)
    batches.channels_last = channels_last
    found = []
    for start in range(0, len(batches), batch_size):
        tickets = list(range(start, min(start + batch_size, len(batches))))
        inputs = batches.model_inputs(batches.__getitems__(tickets), classifier.device)
        views = [inputs["pixel_values"]] + ([inputs["pixel_values"].flip(-1)] if flip else [])
        with torch.autocast(classifier.device.type, torch.bfloat16, enabled=bf16):
            logits = [classifier.model(pixel_values=v).logits for v in views]
        found.append(torch.stack([x.double().softmax(-1) for x in logits]).mean(0))
    return torch.cat(found).cpu().numpy()  # the one wait for the device


def _recipe_of(model: str, dataset: str | None) -> Recipe:
    """The data keys to evaluate with: a run's own, so that its splits are the same, else the defaults."""
    path = Path(model) / "recipe.yaml"
    recipe = load_recipe(str(path)) if path.is_file() and dataset is None else Recipe()
    if dataset is not None:
        recipe.dataset_name = dataset
    return recipe


def evaluate(model: str, dataset: str | None, split: str, batch_size: int, precision: str, tta: str) -> dict[str, Any]:
    """`metrics.classification_metrics` of a model on a split, and images a second. Raises UserError.

    The model's labels are matched with the dataset's by name, so their order does not matter.
    """
    classifier = load_classifier(model)
    images = load_split(_recipe_of(model, dataset), split)
    names = list(images.images.label_names)
    columns = np.argsort(map_labels(classifier.labels, names, None))
    told = None if precision == "auto" else precision == "bf16"
    frozen = classifier.model.requires_grad_(False)
    bf16, channels_last, _ = hardware.fastest(frozen, classifier.transforms.image_size, classifier.device, told, None)
    began = time.perf_counter()
    way = {"bf16": bf16, "channels_last": channels_last, "flip": tta == "flip"}
    found = probabilities(classifier, images, batch_size=batch_size, **way)
    seconds = time.perf_counter() - began
    metrics = classification_metrics(found[:, columns], images.labels, names, prefix=split)
    return metrics | {"samples_per_second": len(images) / seconds, "precision": "bf16" if bf16 else "fp32", "tta": tta}


def predict(model: str, images: list[str], top: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(name, [{label, score}, ...]) of each image, best first, as `pipeline` answers. Folders stand for the pictures in them.

    Every image is read before the first is classified. Raises UserError that names the image that can't be.
    """
    names = [name for word in images for name in _expand(word)]
    for name in names:
        if "://" not in name:
            read_picture(name)  # all are looked at before the first answer, one at a time
    classifier = load_classifier(model)
    with torch.inference_mode():
        for name in names:
            pixels = classifier.transforms.evaluate(torch.from_numpy(read_picture(name))[None].to(classifier.device))
            scores = classifier.model(pixel_values=pixels).logits[0].softmax(-1).cpu()
            best = scores.topk(min(top, len(scores)))
            yield (
                name,
                [
                    {"label": classifier.labels[i], "score": s}
                    for s, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ],
            )


def _expand(word: str) -> list[str]:
    path = Path(word)
    if not path.is_dir():
        return [word]
    found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in PICTURES)
    if not found:
        raise UserError(f"{word}: no picture in this folder ({', '.join(PICTURES)})")
    return found


def read_picture(name: str) -> np.ndarray:
    """uint8 [3, H, W] of a file or URL, decoded as `pipeline` does. Raises UserError."""
    try:
        if name.startswith(("http://", "https://")):
            with urllib.request.urlopen(name, timeout=20) as answer:
                data = answer.read()
        else:
            data = Path(name).read_bytes()
        return to_rgb(open_image(data))
    except BadImage as error:
        raise UserError(f"{name}: {error}; name a picture") from None
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's own are OSErrors
        raise UserError(
            f"{name}: {getattr(error, 'strerror', None) or error}; name a picture, a folder of pictures or a URL"
        ) from None


def verify_model(model: str, dataset: str, labels: str | None, out: Path | None) -> int:
    """`verify.verify` on the test split of `dataset`; the command's exit code: 1 where the card's claim is refuted."""
    told = None
    if labels is not None:
        pairs = [pair.split("=", 1) for pair in labels.split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise UserError("--labels: takes theirs=ours,theirs=ours,...")
        told = {a.strip(): b.strip() for a, b in pairs}
    name, revision = resolve_model(model)
    images = load_split(_recipe_of("", dataset), "test")

    def measure(folder: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
        found = probabilities(load_classifier(folder), split, batch_size=128, bf16=False)
        return found.argmax(1), split.labels

    result = verify(
        name,
        dataset=dataset,
        data=images,
        data_labels=list(images.images.label_names),
        evaluate=measure,
        labels=told,
        revision=revision,
        out=out or Path("verify") / name.strip("/").replace("/", "--"),
    )
    return 1 if result.verdict == "refuted" else 0
