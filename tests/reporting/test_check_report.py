"""Class names are tried in predictions, plots and card before anything is trained."""

import time

import pytest

from hf_cifar.errors import UserError
from hf_cifar.reporting.check_report import check_report


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        [f"class {number}" for number in range(200)],
        ["猫", "قطة", "कुत्ता", "😀", "$", "$$", "$x", "\\frac{", "a\tb", "a\nb", "\x1b[31m", "\x00"],
        ["a" * 255, "<script>", "{{ x }}", "```", "| |", "---", "null", "1", "#"],
    ],
)
def test_names_that_a_report_can_hold(names):
    check_report(names)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["cat", "dog", "cat"], ["2 classes have the same name, cat", "give each its own"]),
        (["cat", ""], ["class 1 has an empty name"]),
        (["cat", " \n"], ["class 1 has an empty name"]),
        (["x" * 256, "dog"], ["class 0 (xxx", "256 characters", "shorten it to 255"]),
        (["cat", "caf\udce9"], ["class 1 (caf\\udce9)", "no UTF-8 text"]),
        (["y" * 10**6, "y"], ["1000000 characters"]),
    ],
)
def test_names_that_it_can_not_hold(names, parts):
    with pytest.raises(UserError) as caught:
        check_report(names)
    line = str(caught.value)
    assert all(part in line for part in parts), line
    assert len(line) < 250 and "\n" not in line


def test_it_leaves_nothing_behind(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check_report(["cat", "dog"])
    assert not list(tmp_path.iterdir())


def test_it_costs_little_beside_a_training():
    check_report(["cat", "dog"])  # imports
    start = time.process_time()
    check_report([f"class {number}" for number in range(10)])
    assert time.process_time() - start < 1.5
