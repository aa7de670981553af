"""The model card of a run: README.md, made from metrics.json alone."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.files import write_text
from hf_cifar.recipe.recipe import packaged
from hf_cifar.reporting.card_context import card_context
from hf_cifar.reporting.card_format import FILTERS, keeps_undefined

# Templates of runs that leave something else than an image classifier, by their task.
CARDS = {"image-feature-extraction": "encoder.md.j2"}
TASKS_CARD = "tasks.md.j2"  # of a run with several tasks


def write_card(folder: Path) -> None:
    """Write `README.md` of a run from its metrics.json and the names of its plots.

    Raises UserError if metrics.json is missing or is no JSON object.
    """
    folder = Path(folder).resolve()
    plots = [path.stem for path in (folder / "plots").glob("*.png")]
    write_text(folder / "README.md", render_card(_read_metrics(folder), folder.name, plots))


def render_card(metrics: dict[str, Any], folder_name: str, plots: Collection[str]) -> str:
    """Return the text of a card. What the metrics lack is left out, with its row or section.

    folder_name: of the run. plots: names of the files in plots/, without their suffix.
    """
    name = CARDS.get(metrics.get("task", ""), "card.md.j2")
    name = TASKS_CARD if metrics.get("tasks") else name
    text = _template(name).render(card_context(metrics, folder_name, plots))
    return re.sub(r"\n{3,}", "\n\n", text)


@cache
def _template(name: str) -> Any:
    """Return a compiled template of the folder model_cards/."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {name: keeps_undefined(form) for name, form in FILTERS.items()}
    text = (packaged("model_cards") / name).read_text(encoding="utf-8")
    return environment.from_string(text)


def _read_metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: a card needs a finished run; train it to its end"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no valid JSON ({error}): remove it and train again") from None
    if not isinstance(metrics, dict):
        raise UserError(f"{path} must hold one JSON object: remove it and train again")
    return metrics
