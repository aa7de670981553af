"""The benchmark of time to accuracy compares two sides, of which one may not reach its goal."""

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


def one_run(seconds, reached=True):
    """Return a run as the benchmark notes it."""
    return {
        "seconds": seconds if reached else None,
        "ran": seconds,
        "accuracy": 0.9,
        "curve": [],
    }


def test_both_sides_reach_the_goal(bench, capsys):
    ours = [one_run(seconds) for seconds in (100.0, 200.0, 100.0)]
    stock = [one_run(seconds) for seconds in (500.0, 800.0, 700.0)]
    expected = {"times": {"median": 5.0, "min": 4.0, "max": 7.0}, "lower_bound": False}
    assert bench.times(ours, stock) == expected
    assert "at least" not in capsys.readouterr().out


def test_a_stock_recipe_that_was_stopped_gives_a_lower_bound(bench, capsys):
    expected = {"times": {"median": 12.0, "min": 12.0, "max": 12.0}, "lower_bound": True}
    assert bench.times([one_run(300.0)], [one_run(3600.0, reached=False)]) == expected
    assert "at least: 12.000" in capsys.readouterr().out


@pytest.mark.parametrize("ours", [[], [one_run(300.0, reached=False)]])
def test_no_ratio_where_ours_does_not_reach_the_goal(ours, bench, capsys):
    expected = {"times": None, "lower_bound": None}
    assert bench.times(ours, [one_run(3600.0)]) == expected
    assert capsys.readouterr().out == ""


def test_its_default_recipe_is_packaged():
    text = (BENCHMARKS / "time_to_accuracy.py").read_text()
    assert '"--recipe", default="fast_90"' in text
    load_recipe("fast_90")
