"""Prints the README's table of recipe keys: python scripts/keys_table.py [--write README.md]."""

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

MARKS = ("<!-- keys -->", "<!-- /keys -->")
# What a key of TrainingArguments means here beyond, or other than, what transformers' own
# documentation says of it.
TRAINING_HELP = {
    "output_dir": "the run folder; default: `runs/` and the recipe's name",
    "max_steps": "steps in all, in place of `num_train_epochs`; -1: not set",
    "per_device_train_batch_size": "images a step and device; times `gradient_accumulation_steps` and devices: the batch",
    "warmup_steps": "steps, or below 1 a share of all of them",
    "optim_args": "what the optimizer takes beyond rate and decay",
    "bf16": "autocast to bfloat16; default: where the hardware is measured or known to be faster with it",
    "eval_strategy": "when validation is scored; the best checkpoint is chosen on it",
    "save_total_limit": "checkpoints that stay, besides the best",
    "metric_for_best_model": "of validation; the checkpoint that is best in it is the run's model",
    "dataloader_drop_last": "in training; evaluation sees every image",
    "dataloader_num_workers": "default: none, or one a core (eight at most) where images of many sizes are decoded anew",
    "report_to": "`tensorboard`, `trackio`, `wandb` ...",
    "seed": "every random choice comes from it",
    "push_to_hub": "push the finished run; the last act",
    "hub_model_id": "USER/NAME that is pushed to",
}


def table() -> str:
    """Markdown: block, key, default and help of every own key, then the keys of TrainingArguments
    with our defaults.
    """
    rows = [
        (title, field.name, default_of(field), field.metadata["help"])
        for title, block in BLOCKS.items()
        for field in dataclasses.fields(block)
    ]
    for name, default in TRAINING_DEFAULTS.items():
        title = "Hub" if name.startswith(("hub_", "push_")) else "Training"
        rows.append(
            (title, name, json.dumps(default), TRAINING_HELP.get(name, "as in `TrainingArguments`"))
        )
    lines = ["| block | key | default | |", "|---|---|---|---|"]
    before = None
    for title, name, default, help in rows:
        lines.append(
            f"| {title if title != before else ''} | `{name}` | `{default}` | {help.replace('|', '&#124;')} |"
        )
        before = title
    return "\n".join(lines)


def refreshed(text: str, name: str) -> str:
    """`text` with a new table between its marks. Raises UserError where it has no such marks."""
    pattern = re.compile(f"({re.escape(MARKS[0])}\n).*?({re.escape(MARKS[1])})", re.DOTALL)
    if not pattern.search(text):
        raise UserError(
            f"{name}: no lines {MARKS[0]} and {MARKS[1]} to hold the table; write them where it should stand"
        )
    return pattern.sub(lambda found: f"{found[1]}{table()}\n{found[2]}", text, count=1)


def is_fresh(path: Path) -> bool:
    """Whether the table in this file is the one that `table` makes now."""
    text = path.read_text(encoding="utf-8")
    return refreshed(text, path.name) == text


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or with `--write FILE` put it between the file's marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="refresh the table in this file")
    path = parser.parse_args(argv).write
    if path is None:
        print(table())
    else:
        path.write_text(refreshed(path.read_text(encoding="utf-8"), path.name), encoding="utf-8")


if __name__ == "__main__":
    main()
