"""The stock recipe, as transformers' image classification example has it: one PIL image at a time
through `with_transform`, RandomResizedCrop and mirror images, the default collator and Trainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, load_dataset
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments

from hf_cifar.data.sources.find import SAMPLE


def load(data: str, images: int | None, test_images: int | None) -> DatasetDict:
    """Return the splits of a folder in the Hub's layout, cut to their first images."""
    root = SAMPLE if data == "sample" else Path(data)
    files = {
        split: [str(p) for p in sorted(root.rglob(f"{split}*.parquet"))]
        for split in ("train", "test")
    }
    splits = load_dataset("parquet", data_files=files)
    for split, most in (("train", images), ("test", test_images)):
        if most and most < len(splits[split]):
            splits[split] = splits[split].select(range(most))
    return splits


def stock_trainer(
    backbone: Any, folder: Path, data: DatasetDict, callbacks: list[Any], **arguments: Any
) -> Trainer:
    """Return a Trainer of a `models.load.Backbone` on `data`. arguments: of TrainingArguments."""
    processor, size = backbone.processor, backbone.image_size
    normalize = v2.Normalize(mean=processor.image_mean, std=processor.image_std)
    tail = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize]
    train = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *tail])
    test = v2.Compose([v2.Resize(size), v2.CenterCrop(size), *tail])
    image = next(name for name in data["train"].column_names if name != "label")

    def transform(how: Any) -> Any:
        def apply(rows: dict[str, Any]) -> dict[str, Any]:
            return {
                "pixel_values": [how(i.convert("RGB")) for i in rows[image]],
                "label": rows["label"],
            }

        return apply

    quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    quiet[
        "use_cpu"
    ] = not torch.cuda.is_available()  # without it, TrainingArguments refuses bf16 on a CPU
    return Trainer(
        model=backbone.model,
        args=TrainingArguments(
            output_dir=str(folder), remove_unused_columns=False, **(quiet | arguments)
        ),
        train_dataset=data["train"].with_transform(transform(train)),
        eval_dataset=data["test"].with_transform(transform(test)),
        compute_metrics=lambda p: {
            "accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())
        },
        callbacks=callbacks,
    )
