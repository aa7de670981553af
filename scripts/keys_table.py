"""Print the table of recipe keys, or write it: python scripts/keys_table.py [--write FILE]."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from hf_cifar.cli.options import default_of
from hf_cifar.errors import UserError
from hf_cifar.recipe.fields import BLOCKS, TRAINING_DEFAULTS
from hf_cifar.recipe.recipe import is_hub_key

MARKS = ("<!-- keys -->", "<!-- /keys -->")
# What keys of TrainingArguments mean here, where that is more or other than what transformers says.
TRAINING_HELP = {
    "output_dir": "the run folder; default: `runs/` and the recipe's name",
    "max_steps": "number of steps, instead of `num_train_epochs`; -1: not set",
    "per_device_train_batch_size": "images per step and device; times"
    " `gradient_accumulation_steps` and devices, the batch",
    "warmup_steps": "number of steps, or below 1 the share of all steps",
    "bf16": "autocast to bfloat16; default: if it is faster on this hardware",
    "eval_strategy": "when validation is scored; it chooses the best checkpoint",
    "save_total_limit": "number of checkpoints to keep, besides the best",
    "metric_for_best_model": "validation metric that chooses the checkpoint",
    "dataloader_drop_last": "in training only; evaluation uses every image",
    "dataloader_num_workers": "default: 0, or one for each core (eight at most) if images of many"
    " sizes are decoded in each epoch",
    "report_to": "`tensorboard`, `trackio`, `wandb` and others",
    "seed": "every random choice follows from it",
    "push_to_hub": "push the finished run to the Hub",
    "hub_model_id": "USER/NAME to push to",
}


def table() -> str:
    """Return Markdown with the block, name, default and help of each key.

    The project's own keys come first, then the keys of TrainingArguments that have a default here.
    """
    rows = [
        (title, field.name, default_of(field), field.metadata["help"])
        for title, block in BLOCKS.items()
        for field in dataclasses.fields(block)
    ]
    for name, default in TRAINING_DEFAULTS.items():
        title = "Hub" if is_hub_key(name) else "Training"
        help = TRAINING_HELP.get(name, "as in `TrainingArguments`")
        rows.append((title, name, json.dumps(default), help))
    lines = ["| block | key | default | meaning |", "|---|---|---|---|"]
    previous = ""
    for title, name, default, help in rows:
        block = title if title != previous else ""
        lines.append(f"| {block} | `{name}` | `{default}` | {help.replace('|', '&#124;')} |")
        previous = title
    return "\n".join(lines)


def refreshed(text: str, name: str) -> str:
    """Return `text` with a new table between its marks. Raises UserError if it has no marks."""
    pattern = re.compile(f"({re.escape(MARKS[0])}\n).*?({re.escape(MARKS[1])})", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"{name}: no lines {MARKS[0]} and {MARKS[1]}; write them around the table")
    return pattern.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", text, count=1)


def is_fresh(path: Path) -> bool:
    """Return whether the table in this file is what `table` returns now."""
    text = path.read_text(encoding="utf-8")
    return refreshed(text, path.name) == text


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or with `--write FILE` replace the one between the file's marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this file")
    path = parser.parse_args(argv).write
    if path is None:
        print(table())
    else:
        path.write_text(refreshed(path.read_text(encoding="utf-8"), path.name), encoding="utf-8")


if __name__ == "__main__":
    main()
