"""A bug keeps its traceback; only failures that are known as such are told in one line."""

import pytest

from hf_cifar.cli import main, recipes
from hf_cifar.errors import UserError


def test_only_what_is_no_bug_is_told_in_one_line(monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError

    def refused(*_):
        raise UserError("two\nlines")

    monkeypatch.setattr(recipes, "find_recipe", broken)
    with pytest.raises(ZeroDivisionError):
        main.run(["recipes", "show", "quickstart"])
    monkeypatch.setattr(recipes, "find_recipe", refused)
    assert main.run(["recipes", "show", "quickstart"]) == 2
    assert capsys.readouterr().err == "hf-cifar: two lines\n"
