"""`hf-cifar recipes`."""

from pathlib import Path

from hf_cifar.cli import main
from hf_cifar.recipe.load import find_recipe
from hf_cifar.recipe.recipe import recipe_names


def test_recipes_are_listed_shown_copied_and_checked(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(["recipes", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == recipe_names()
    assert main.run(["recipes", "show", "quickstart"]) == 0
    shown = capsys.readouterr().out
    assert shown == find_recipe("quickstart").read_text()
    assert main.run(["recipes", "copy", "quickstart"]) == 0
    assert Path("quickstart.yaml").read_text() == shown
    assert capsys.readouterr().out.strip() == "quickstart.yaml"
    assert main.run(["recipes", "copy", "quickstart", "mine/first.yaml"]) == 0
    assert main.run(["recipes", "check", "mine/first.yaml", "quickstart"]) == 0
    assert "mine/first.yaml: ok" in capsys.readouterr().out
    assert main.run(["recipes", "copy", "accelerate", "mine"]) == 0
    assert Path("mine/accelerate/cpu.yaml").is_file()


def test_recipes_that_can_not_be_shown_or_copied(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("mine")
    assert "quickstart.yaml exists already" in refused("recipes", "copy", "quickstart")
    assert Path("quickstart.yaml").read_text() == "mine"
    assert "vit_huge_14/lora" in refused("recipes", "show", "vit_huge_14/loar")
    assert "c" in refused("recipes", "copy", "a", "b", "c")
    assert "quickstart.yaml" in refused("recipes", "check", "quickstart.yaml")
    line = refused("recipes", "copy", "quickstart", "quickstart.yaml/mine.yaml")
    assert "quickstart.yaml/mine.yaml: can't be written" in line
