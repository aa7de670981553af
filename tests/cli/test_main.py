"""The command itself: what it prints, its exit codes, and that bad input is one line that says
what, where and what to do.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline

from hf_cifar.cli import main
from hf_cifar.data.cifar10 import write_parquet
from hf_cifar.errors import UserError
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import recipe_names
from hf_cifar.reporting import predictions

ROOT = Path(__file__).parents[2]
RECIPE = {
    "dataset_name": "sample",
    "max_train_samples": 20,
    "max_eval_samples": 20,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 10,
    "bf16": False,
    "channels_last": False,
    "dataloader_num_workers": 0,
    "disable_tqdm": True,
}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(predictions, "write_plots", lambda *_: None)


@pytest.fixture
def recipe(tiny, tmp_path):
    """recipe(key=value, ...): the path of a recipe file for the tiny ViT; runs go to tmp_path/run."""

    def write(**keys):
        path = tmp_path / "mine.yaml"
        base = {"model_name_or_path": str(tiny("vit")), "output_dir": str(tmp_path / "run")}
        path.write_text(yaml.safe_dump(RECIPE | base | keys))
        return str(path)

    return write


@pytest.fixture
def refused(capfd):
    """refused(word, ...): run the command, which must refuse; the one line that it says."""

    def run(*words):
        capfd.readouterr()
        code = main.run([str(w) for w in words])
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("hf-cifar: ")]
        assert code == 2 and len(lines) == 1 and err.splitlines()[-1] == lines[0], err
        assert "Traceback" not in err and out == ""
        assert len(lines[0]) < 500
        return lines[0]

    return run


def process(*words, cwd=ROOT, **environment):
    """The command as people start it."""
    words = [sys.executable, "-m", "hf_cifar", *map(str, words)]
    return subprocess.run(
        words,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


# ---- without torch ----


def test_help_and_recipes_answer_without_torch():
    code = """
import sys
from hf_cifar import cli
for words in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["predict", "--help"], ["data", "fetch", "--help"],
              ["recipes", "list"], ["recipes", "show", "quickstart"]):
    try:
        main.run(words)
    except SystemExit as stop:
        assert stop.code == 0
heavy = {"torch", "transformers", "datasets", "matplotlib", "sklearn", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "model_name_or_path" in done.stdout and "lora_target_modules" in done.stdout


def test_the_program_as_a_module():
    done = process("--help")
    assert done.returncode == 0 and "train" in done.stdout and done.stderr == ""
    done = process("nonsense")
    assert done.returncode == 2 and "nonsense" in done.stderr and "Traceback" not in done.stderr


# ---- overrides ----


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True), st.text(max_size=12))
)
def test_overrides_come_back_as_they_were_typed(keys):
    assert main.overrides([f"--{k.replace('_', '-')}={v}" for k, v in keys.items()]) == keys
    apart = {k: v for k, v in keys.items() if not v.startswith("--")}
    assert main.overrides([w for k, v in apart.items() for w in (f"--{k}", v)]) == apart


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["--from_scratch"], {"from_scratch": "true"}),
        (["--from_scratch", "--seed", "3"], {"from_scratch": "true", "seed": "3"}),
        (["--model_config", "{model_type: vit}"], {"model_config": "{model_type: vit}"}),
        (["--learning_rate", "-1"], {"learning_rate": "-1"}),
        (["--dataset-name=a=b"], {"dataset_name": "a=b"}),
        (["--seed", "1", "--seed", "2"], {"seed": "2"}),
    ],
)
def test_ways_to_write_an_override(words, keys):
    assert main.overrides(words) == keys


def test_an_override_is_read_as_its_type(recipe):
    words = [
        "--probe_learning_rates",
        "1e-3,1e-2",
        "--random_resized_crop_scale",
        "null",
        "--horizontal_flip",
        "0",
        "--tf32=false",
    ]
    found = load_recipe(recipe(), main.overrides(words))
    assert found.probe_learning_rates == [0.001, 0.01] and found.random_resized_crop_scale is None
    assert found.horizontal_flip == 0.0 and found.training["tf32"] is False


# ---- recipes ----


def test_recipes_are_listed_shown_copied_and_checked(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.run(["recipes", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == recipe_names()
    assert main.run(["recipes", "show", "quickstart"]) == 0
    shown = capsys.readouterr().out
    assert main.run(["recipes", "copy", "quickstart"]) == 0
    assert (
        Path("quickstart.yaml").read_text() == shown
        and capsys.readouterr().out.strip() == "quickstart.yaml"
    )
    assert main.run(["recipes", "copy", "quickstart", "mine/first.yaml"]) == 0
    assert main.run(["recipes", "check", "mine/first.yaml", "quickstart"]) == 0
    assert "mine/first.yaml: ok" in capsys.readouterr().out


def test_recipes_that_can_not_be_shown_or_copied(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("mine")
    assert "quickstart.yaml is there already" in refused("recipes", "copy", "quickstart")
    assert Path("quickstart.yaml").read_text() == "mine"
    assert "name a recipe" in refused("recipes", "show")
    assert "vit_huge_14/lora" in refused("recipes", "show", "vit_huge_14/loar")
    assert "takes NAME and maybe TO" in refused("recipes", "copy", "a", "b", "c")
    assert "quickstart.yaml" in refused("recipes", "check", "quickstart.yaml")


# ---- from train to predict ----


def test_train_evaluate_and_predict(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert main.run(["train", recipe(), "--learning_rate", "3e-3", "--seed=5"]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"test accuracy {metrics['test_accuracy']:.4f}" in out and str(run / "README.md") in out
    assert metrics["recipe"]["learning_rate"] == 0.003 and metrics["seed"] == 5
    assert (
        str(tmp_path) not in metrics["launch_command"]
        and "--learning_rate 3e-3" in metrics["launch_command"]
    )

    assert main.run(["evaluate", str(run), "--json", "--precision", "fp32"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["test_accuracy"] == metrics["test_accuracy"]
    assert again["test_nll"] == pytest.approx(metrics["test_nll"], abs=1e-5)
    assert main.run(["evaluate", str(run), "--split", "validation", "--precision", "fp32"]) == 0
    assert f"validation accuracy {metrics['validation_accuracy']:.4f}" in capsys.readouterr().out

    pictures = []
    for i, mode in enumerate(("RGB", "L", "P", "RGBA")):
        PIL.Image.effect_mandelbrot((40 + i, 33), (-2, -1, 1, 1), 30).convert(mode).save(
            tmp_path / f"{i}.png"
        )
        pictures.append(str(tmp_path / f"{i}.png"))
    assert main.run(["predict", str(run), *pictures, "--json", "--top", "10"]) == 0
    ours = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    theirs = pipeline("image-classification", model=str(run), top_k=10)(pictures)
    assert [o["image"] for o in ours] == pictures
    for a, b in zip(ours, theirs, strict=True):
        want = {answer["label"]: answer["score"] for answer in b}
        assert {
            answer["label"]: pytest.approx(answer["score"], abs=1e-4) for answer in a["labels"]
        } == want
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(pictures[0], folder)
    assert main.run(["predict", str(run), str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_diverged_run_is_one_line_and_exit_1(recipe, capfd):
    assert (
        main.run(
            [
                "train",
                recipe(),
                "--learning_rate",
                "1e25",
                "--optim",
                "sgd",
                "--max_grad_norm",
                "0",
                "--num_train_epochs",
                "4",
            ]
        )
        == 1
    )
    said = capfd.readouterr().err.splitlines()[-1]
    assert (
        said.startswith("hf-cifar: ") and "not finite" in said and "lower `learning_rate`" in said
    )


# ---- bad input: recipes and keys ----


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "quikstart"], ["quikstart", "did you mean `quickstart`"]),
        (["train", "nowhere/mine.yaml"], ["nowhere/mine.yaml", "recipes list"]),
        (
            ["train", "quickstart", "--learning_rat", "1"],
            ["learning_rat", "did you mean `learning_rate`"],
        ),
        (
            ["train", "quickstart", "--learning_rate", "fast"],
            ["learning_rate", "a number", "'fast'"],
        ),
        (["train", "quickstart", "--learning_rate", "-0.1"], ["learning_rate", "above 0", "-0.1"]),
        (["train", "quickstart", "--image_size", "1.5"], ["image_size", "a whole number"]),
        (["train", "quickstart", "--method", "magic"], ["method", "full, linear, partial, lora"]),
        (["train", "quickstart", "--hub_token", "hf_secret"], ["hub_token", "environment"]),
        (["train", "quickstart", "learning_rate=1"], ["learning_rate=1", "--key value"]),
        (["train", "quickstart", "--report_to", "nonsense"], ["report_to", "nonsense"]),
        (["train", "quickstart", "--lr_scheduler_type", "wavy"], ["lr_scheduler_type", "cosine"]),
        (["evaluate", "nowhere/model"], ["nowhere/model"]),
        (["predict", "nowhere/at/all", "x.png"], ["x.png"]),
        (["data", "check", "nowhere"], ["nowhere"]),
        (["verify", "./nowhere"], ["nowhere"]),
    ],
)
def test_bad_words(words, told, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(*words)
    assert all(t in line for t in told), line
    assert "hf_secret" not in line
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_bad_input_in_a_process_of_its_own(recipe, tiny, tmp_path):
    done = process("train", recipe(no_such_key=1))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert (
        done.stderr.startswith("hf-cifar: ")
        and "no_such_key" in done.stderr
        and "mine.yaml" in done.stderr
    )
    done = process("train", recipe(image_size=33))
    assert done.returncode == 2 and done.stdout == ""
    assert "image_size: 33" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


# ---- bad input: data ----


def class_folder(root, **counts):
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name.replace("__", "/")).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(root / name.replace("__", "/") / f"{i}.png")
    return root


def test_data_folders_with_something_wrong(recipe, refused, tmp_path):
    def line(folder):
        return refused("train", recipe(dataset_name=str(folder)))

    assert "missing" in line(tmp_path / "missing") and "sample" in line(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "empty" in line(tmp_path / "empty")
    assert "one class only (cat)" in line(class_folder(tmp_path / "one", cat=4))
    lacking = class_folder(tmp_path / "lacking", train__cat=4, train__dog=4, test__cat=2)
    assert "dog" in line(lacking) and "test" in line(lacking)


def test_labels_out_of_range(recipe, refused, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pictures = [
        (class_folder(tmp_path / "p", a=4) / "a" / f"{i}.png").read_bytes() for i in range(4)
    ]
    for split in ("train", "test"):
        write_parquet(folder / f"{split}.parquet", pictures, np.array([0, 1, 0, 1]), ["cat", "dog"])
    table = pq.read_table(folder / "train.parquet")
    column = table.schema.get_field_index("label")
    labels = table.column("label").combine_chunks().to_numpy().copy()
    labels[2] = 7
    field = table.schema.field(column)
    pq.write_table(table.set_column(column, field, [labels]), folder / "train.parquet")
    line = refused("train", recipe(dataset_name=str(folder)))
    assert "row 2" in line and "label 7" in line


def test_a_truncated_picture_is_named_or_skipped_and_counted(recipe, refused, tmp_path, caplog):
    folder = class_folder(tmp_path / "data", train__cat=10, train__dog=10, test__cat=3, test__dog=3)
    broken = folder / "train" / "dog" / "4.png"
    broken.write_bytes(broken.read_bytes()[:300])
    line = refused("train", recipe(dataset_name=str(folder)))
    assert "4.png" in line and "on_bad_image" in line
    with caplog.at_level("INFO", "hf_cifar"):
        words = [
            "--on_bad_image",
            "skip",
            "--max_train_samples",
            "null",
            "--max_eval_samples",
            "null",
        ]
        assert (
            main.run(["train", recipe(dataset_name=str(folder), validation_fraction=0.2), *words])
            == 0
        )
    assert "4.png" in caplog.text
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["train_samples"] == 15 and metrics["test_samples"] == 6


# ---- bad input: models ----


def test_models_that_can_not_be_trained(recipe, refused, tiny, tmp_path):
    def net(name, **changes):
        folder = shutil.copytree(tiny("vit"), tmp_path / name)
        tiny_models.edit_config(folder, **changes)
        return folder

    assert "no Hub in reach" in refused(
        "train", recipe(model_name_or_path="google/vit-base-patch16-224-in21k")
    )
    bare = net("bare")
    (bare / "model.safetensors").unlink()
    line = refused("train", recipe(model_name_or_path=str(bare)))
    assert str(bare) in line and "no weights" in line
    (bare / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    assert "pytorch_model.bin" in refused("train", recipe(model_name_or_path=str(bare)))
    wide = net("wide", hidden_size=64)
    assert "do not fit the config" in refused("train", recipe(model_name_or_path=str(wide)))
    line = refused("train", recipe(), "--image_size", "33")
    assert "image_size: 33" in line and "patch of 8" in line and "use 32" in line
    line = refused("train", recipe(), "--method", "lora", "--lora_target_modules", "query,value")
    assert "lora_target_modules" in line and "q_proj" in line
    assert "unfreeze_blocks" in refused(
        "train", recipe(), "--method", "partial", "--unfreeze_blocks", "12"
    )
    assert not list(
        (tmp_path / "run").glob("*")
    )  # no half a run that would be in the way of the next


def test_a_run_folder_of_another_recipe_stays_as_it_is(recipe, refused, tmp_path):
    assert main.run(["train", recipe()]) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    line = refused("train", recipe(), "--weight_decay", "0.3")
    assert "weight_decay (0.0 there, 0.3 here)" in line and "--fresh" in line
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_run_is_not_begun_in_a_file(recipe, refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = refused("train", recipe(), "--output_dir", tmp_path / "file")
    assert "output_dir" in line and str(tmp_path / "file") in line
    line = refused("train", recipe(), "--output_dir", tmp_path / "file" / "run")
    assert "output_dir" in line


# ---- bad input: pictures ----


@pytest.fixture(scope="module")
def net(tiny):
    return tiny("vit")


def test_pictures_that_are_none(net, refused, tmp_path):
    def line(name, content):
        (tmp_path / name).write_bytes(content)
        told = refused("predict", net, tmp_path / name)
        assert str(tmp_path / name) in told
        return told

    line("text.png", b"I am no picture\n")
    line("empty.png", b"")
    good = class_folder(tmp_path / "p", a=1) / "a" / "0.png"
    line("half.png", good.read_bytes()[:400])
    wide = PIL.Image.new("1", (100_000, 10))
    wide.save(tmp_path / "wide.png")
    told = refused("predict", net, good, tmp_path / "wide.png")
    assert "wide.png" in told and "100000" in told.replace(",", "").replace(" ", "")
    assert "nowhere.png" in refused("predict", net, tmp_path / "nowhere.png")
    (tmp_path / "none").mkdir()
    assert "no picture in this folder" in refused("predict", net, tmp_path / "none")
    assert "127.0.0.1:9" in refused("predict", net, "http://127.0.0.1:9/cat.png")


def test_bad_options_are_usage_errors(capsys):
    for words in (
        ["predict", "m", "x.png", "--top", "0"],
        ["evaluate", "m", "--split", "dev"],
        ["evaluate", "m", "--seed", "1"],
        [],
    ):
        with pytest.raises(SystemExit) as stop:
            main.run(words)
        assert stop.value.code == 2
        assert "usage: hf-cifar" in capsys.readouterr().err


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    """Only what is known to be bad input is told in one line: a bug must stay visible."""

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(main, "find_recipe", broken)
    with pytest.raises(ZeroDivisionError):
        main.run(["recipes", "show", "quickstart"])
    monkeypatch.setattr(
        main, "find_recipe", lambda _: (_ for _ in ()).throw(UserError("two\nlines"))
    )
    assert main.run(["recipes", "show", "quickstart"]) == 2
