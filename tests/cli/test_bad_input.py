"""Bad input is one line that says what, where and what to do, and exit code 2."""

import json
import pickle
import shutil

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from helpers import tiny_models
from helpers.command import hf_cifar

from hf_cifar.cli import main
from hf_cifar.data.hub_layout import write_parquet

# Recipes and keys


@pytest.mark.parametrize(
    ("words", "parts"),
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
        (["predict", "nowhere/at/all", "x.png"], ["nowhere/at/all"]),
        (["data", "check", "nowhere"], ["nowhere"]),
        (["verify", "./nowhere"], ["nowhere"]),
    ],
)
def test_bad_words(words, parts, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(*words)
    assert all(part in line for part in parts), line
    assert "hf_secret" not in line
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_bad_input_in_a_process_of_its_own(recipe, tiny, tmp_path):
    done = hf_cifar("train", recipe(no_such_key=1))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert (
        done.stderr.startswith("hf-cifar: ")
        and "no_such_key" in done.stderr
        and "mine.yaml" in done.stderr
    )
    done = hf_cifar("train", recipe(image_size=33))
    assert done.returncode == 2 and done.stdout == ""
    assert "image_size: 33" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


# Data


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
    assert "only one class (cat)" in line(class_folder(tmp_path / "one", cat=4))
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


# Models


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
    # No half a run is in the way of the next one; the marker of the run folder is a hidden file.
    assert not list((tmp_path / "run").glob("[!.]*"))


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


# Pictures


@pytest.fixture(scope="module")
def net(tiny):
    return tiny("vit")


def test_pictures_that_are_none(net, refused, tmp_path):
    def line(name, content):
        (tmp_path / name).write_bytes(content)
        message = refused("predict", net, tmp_path / name)
        assert str(tmp_path / name) in message
        return message

    line("text.png", b"I am no picture\n")
    line("empty.png", b"")
    good = class_folder(tmp_path / "p", a=1) / "a" / "0.png"
    line("half.png", good.read_bytes()[:400])
    wide = PIL.Image.new("1", (100_000, 10))
    wide.save(tmp_path / "wide.png")
    message = refused("predict", net, tmp_path / "wide.png", good)
    assert "wide.png" in message and "100000" in message.replace(",", "").replace(" ", "")
    assert "nowhere.png" in refused("predict", net, tmp_path / "nowhere.png")
    (tmp_path / "none").mkdir()
    assert "no picture in this folder" in refused("predict", net, tmp_path / "none")
    assert "127.0.0.1:9" in refused("predict", net, "http://127.0.0.1:9/cat.png")
