"""Keeps the card of a real run in the repository: python scripts/keep_card.py runs/NAME [runs/NAME
...]

Copies what the card shows (README.md, metrics.json, plots/) to model_cards/NAME; the card is
written anew from metrics.json.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hf_cifar.reporting.model_card import write_card

CARDS = Path(__file__).parent.parent / "model_cards"


def keep(run: Path) -> Path:
    """The card's folder. The run must be a finished one."""
    folder = CARDS / run.resolve().name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run / "plots", folder / "plots")
    shutil.copy(run / "metrics.json", folder)
    write_card(folder)
    return folder


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(keep(Path(name)))
