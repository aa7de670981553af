"""`hf-cifar calibrate`: let a finished run say "none of these"."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.evaluation.known_pictures import compute_known, freeze_classifier, write_known
from hf_cifar.evaluation.reject import choose_reject
from hf_cifar.evaluation.target_data import target_recipe
from hf_cifar.files import write_json
from hf_cifar.runs.additions import add_to_run, is_run


def calibrate(run: str, share: float) -> dict[str, Any]:
    """Choose on validation how the run rejects strangers, store it with the run, and return what
    config.json, metrics.json and the card say of it: `score`, `threshold`, `share` and `aurocs`.

    share: of validation pictures that are rejected. Raises UserError for what is no finished run,
    and for one without enough validation pictures.
    """
    if not is_run(run):
        raise UserError(f"{run}: it is no folder of a finished run; name one")
    folder = Path(run).expanduser()
    classifier = load_classifier(run)
    pictures = compute_known(
        classifier, target_recipe(run, None, {}), freeze_classifier(classifier)
    )
    pictures = choose_reject(pictures, share, run)
    assert pictures.reject is not None
    facts = dataclasses.asdict(pictures.reject)

    def write(aside: Path) -> None:
        write_known(pictures, aside)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(aside / "config.json", config | {"reject": facts}, indent=2)

    add_to_run(folder, "reject", facts, write)
    return facts
