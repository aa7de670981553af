"""The YAML at the top of a model card, which others wrote."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from hf_cifar.data.regular_files import MAX_TEXT_BYTES, read_regular_file
from hf_cifar.recipe.yaml_text import MOST_CHARACTERS, expanded_length

MAX_CHARACTERS = 200_000  # of YAML; the parser takes two seconds for them
MAX_DEPTH = 50  # of lists and objects inside each other; the parser takes seconds for 1,000


def read_card(path: Path) -> str:
    """Return the text of a model card; "" where there is none that can be read."""
    try:
        return read_regular_file(path, MAX_TEXT_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return ""


def card_metadata(card: str) -> dict[str, Any]:
    """Return the YAML between the first two lines of `---`, with every number as it is written.

    What is no such YAML, too long, too deep, or multiplied by aliases gives {}.
    """
    lines = iter(card.lstrip().replace("\r\n", "\n").split("\n"))
    if next(lines).rstrip() != "---":
        return {}
    front: list[str] = []
    for line in lines:
        if line.rstrip() == "---":
            break
        front.append(line)
    else:
        return {}
    text = "\n".join(front)
    depths = accumulate((c in "[{") - (c in "]}") for c in text)
    if len(text) > MAX_CHARACTERS or max(depths, default=0) > MAX_DEPTH:
        return {}
    try:
        # BaseLoader keeps the text of numbers: a card's 97.80 was rounded to two digits, and as a
        # float it would seem rounded to one.
        loader = yaml.BaseLoader(text)
        node = loader.get_single_node()
        if node is None or expanded_length(node, {}) > MOST_CHARACTERS:
            return {}
        metadata = loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def card_license(card: str) -> str | None:
    """Return the licence that a card names, or None."""
    name = card_metadata(card).get("license")
    return name if isinstance(name, str) and name else None
