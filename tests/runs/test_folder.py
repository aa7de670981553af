"""A run folder belongs to one recipe and one process; --fresh removes a run and nothing else."""

import json

import pytest
from filelock import FileLock
from helpers.watching import stopped_in_step

from hf_cifar.errors import UserError


def contents(folder):
    """Return path -> bytes of every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_run_is_returned_and_another_recipe_refused(tiny, train):
    run = train("run", tiny("vit"), max_steps=2)
    times = {path: path.stat().st_mtime_ns for path in contents(run.path) if path.name[0] != "."}
    # A license says where the model goes, not what is computed.
    again = train("run", tiny("vit"), max_steps=2, license="mit")
    assert again.metrics == run.metrics
    assert times == {path: path.stat().st_mtime_ns for path in times}
    with pytest.raises(UserError) as caught:
        train("run", tiny("vit"), max_steps=2, learning_rate=0.5)
    message = str(caught.value)
    assert "learning_rate (0.005 there, 0.5 here)" in message and "--fresh" in message
    fresh = train("run", tiny("vit"), fresh=True, max_steps=2, learning_rate=0.5)
    assert fresh.metrics["recipe"]["learning_rate"] == 0.5


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_other_files_is_refused(fresh, tiny, tmp_path, train):
    """Also one that looks like a run: only the marker makes it one."""
    project = tmp_path / "run"
    (project / "plots").mkdir(parents=True)
    for name in ("recipe.yaml", "README.md", "config.json", "plots/thesis.png"):
        (project / name).write_text("years of work")
    before = contents(project)
    with pytest.raises(UserError, match=r"holds something else than a run \(README.md\)"):
        train("run", tiny("vit"), fresh=fresh)
    assert contents(project) == before


def test_fresh_removes_a_run_and_nothing_else(tiny, train):
    run = train("run", tiny("vit"), max_steps=1)
    listed = json.loads((run.path / ".hf_cifar.json").read_text())["files"]
    written = [str(path.relative_to(run.path)) for path in contents(run.path)]
    others = [n for n in written if n != ".hf_cifar.json" and not n.startswith("checkpoints/")]
    assert sorted(listed) == sorted(others)
    for name in ("notes.txt", "plots/mine.png", "checkpoints/mine.txt"):
        (run.path / name).write_text("mine")
    with stopped_in_step(1):  # when the old run has been removed
        train("run", tiny("vit"), fresh=True, max_steps=1)
    left = {str(path.relative_to(run.path)) for path in contents(run.path)}
    new = {".hf_cifar.json", "recipe.yaml"}
    assert left == new | {"notes.txt", "plots/mine.png", "checkpoints/mine.txt"}
    again = train("run", tiny("vit"), max_steps=1)
    assert (again.path / "model.safetensors").is_file()
    assert (again.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["checkpoints", "plots", "README.md"])
def test_fresh_touches_nothing_where_a_part_of_the_run_became_a_link(name, tiny, tmp_path, train):
    run = train("run", tiny("vit"), max_steps=1)
    elsewhere = tmp_path / "scratch"
    (run.path / name).rename(elsewhere)
    (run.path / name).symlink_to(elsewhere)
    before = contents(run.path)
    with pytest.raises(UserError, match=f"{name} is a link"):
        train("run", tiny("vit"), fresh=True, max_steps=1)
    assert contents(run.path) == before and elsewhere.exists()


def test_a_file_of_a_name_that_the_run_needs_is_not_overwritten(tiny, tmp_path, train):
    with stopped_in_step(8):
        train("run", tiny("vit"))
    (tmp_path / "run" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"README.md is not this run's"):
        train("run", tiny("vit"))
    assert (tmp_path / "run" / "README.md").read_text() == "mine"
    (tmp_path / "run" / "README.md").unlink()
    assert "test_accuracy" in train("run", tiny("vit")).metrics


def test_two_processes_do_not_train_in_one_folder(tiny, tmp_path, train):
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(UserError, match="another process is training here"),
    ):
        train("run", tiny("vit"))
