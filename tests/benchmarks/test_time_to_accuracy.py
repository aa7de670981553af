"""What the benchmark of time to accuracy says of two sides, of which one may not have arrived."""

import importlib.util
import sys
from pathlib import Path

import pytest

from hf_cifar.recipe.load import load_recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(
            "time_to_accuracy", BENCHMARKS / "time_to_accuracy.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("common", None)


def row(ran, arrived=True):
    return {"seconds": ran if arrived else None, "ran": ran, "accuracy": 0.9, "curve": []}


def test_both_arrived(bench, capsys):
    found = bench.times([row(100.0), row(200.0), row(100.0)], [row(500.0), row(800.0), row(700.0)])
    assert found == {"times": {"median": 5.0, "min": 4.0, "max": 7.0}, "lower_bound": False}
    assert "at least" not in capsys.readouterr().out


def test_a_stock_recipe_that_was_stopped_gives_a_lower_bound(bench, capsys):
    found = bench.times([row(300.0)], [row(3600.0, arrived=False)])
    assert found == {"times": {"median": 12.0, "min": 12.0, "max": 12.0}, "lower_bound": True}
    assert "at least: 12.000" in capsys.readouterr().out


def test_nothing_is_said_where_ours_did_not_arrive(bench, capsys):
    nothing = {"times": None, "lower_bound": None}
    assert (
        bench.times([row(300.0, arrived=False)], [row(3600.0)])
        == nothing
        == bench.times([], [row(3600.0)])
    )
    assert capsys.readouterr().out == ""


def test_its_default_recipe_is_there():
    text = (BENCHMARKS / "time_to_accuracy.py").read_text()
    assert '"--recipe", default="fast_90"' in text and load_recipe("fast_90").method in (
        "linear",
        "partial",
        "full",
        "lora",
    )
