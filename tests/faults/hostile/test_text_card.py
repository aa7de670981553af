"""Class names, paths and licences that others wrote, in the card."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helpers.made_up_run import METRICS, PROBABILITIES, TRUE, card_of
from huggingface_hub import ModelCard

from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.text import UNSAFE

HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "\u202eexe.gpj",
    "a\nb\n# Heading",
    "[x](javascript:alert(1))",
    "<script>alert(1)</script>",
    "| a | b |",
    "{{ 42 * 42 }}{% raw %}",
    "---\nlicense: mit\n---",
    "`` ` ``` code",
    "\\",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_from_a_stranger(tmp_path: Path, name: str) -> None:
    labels = [name, *METRICS["labels"][1:]]
    metrics = METRICS | classification_metrics(PROBABILITIES, TRUE, labels)
    for key in ("run_name", "dataset", "base_model", "license", "base_model_license"):
        metrics[key] = name
    metrics |= {
        "labels": labels,
        "hub_model_id": None,
        "method_description": name,
        "warnings": [name],
        "recipe": {"dataset_name": name, "license": name},
        "hardware": {"device": name, "cpu": name},
    }
    card = card_of(tmp_path / "run", metrics)
    assert not [line for line in card.split("\n") if UNSAFE.search(line)]
    body = card.split("---\n", 2)[2]
    text = re.sub(r"^```.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert "\n# Heading" not in body and not re.search(r"(?<!\\)(\]\(java|<script)", text)
    assert "1764" not in card, "the template's language is no part of a name"
    data = ModelCard(card).data.to_dict()
    assert data["license"] == "other" and "alert" not in str(data.get("datasets"))
    front = yaml.safe_load(card.split("---\n")[1])
    assert set(front) <= {
        *("base_model", "base_model_relation", "datasets", "library_name", "license"),
        *("license_name", "metrics", "pipeline_tag", "tags", "model-index"),
    }
    use = next(line for line in body.splitlines() if line.startswith("classifier ="))
    compile(use, "card", "exec")
    location = use.split("model=")[1].removesuffix(")")
    assert yaml.safe_load(location) == eval(location) == f"./{name}"
