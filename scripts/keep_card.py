"""Keep the card of a real run in the repository: python scripts/keep_card.py runs/NAME ...

Copies metrics.json and plots/ to model_cards/NAME and writes the card there from them.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hf_cifar.reporting.model_card import write_card

CARDS = Path(__file__).parents[1] / "model_cards"


def keep(run: Path) -> Path:
    """Copy what the card of a finished run shows, and return the folder of the copy."""
    folder = CARDS / run.resolve().name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run / "plots", folder / "plots")
    shutil.copy(run / "metrics.json", folder)
    write_card(folder)
    return folder


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(keep(Path(name)))
