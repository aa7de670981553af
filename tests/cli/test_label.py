"""`label`: the pictures to label first, and a table that a person fills in and `train` reads."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.runs import LABELS, train_into, without_drawing

from hf_cifar.cli import main
from hf_cifar.data.load import load_split
from hf_cifar.evaluation.label_order import badge_order
from hf_cifar.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("label") / "run"
    return train_into(folder, tiny("resnet"), method="linear", max_train_samples=100).path


@pytest.fixture
def pictures(tmp_path) -> Path:
    """40 of the sample's test pictures, some in a folder below, and a copy of one."""
    split = load_split(Recipe(dataset_name="sample"), "test")
    folder = tmp_path / "pictures"
    (folder / "more, later").mkdir(parents=True)
    for number, row in enumerate(split.rows[:40]):
        name = f"{number}.png" if number % 2 else f"more, later/{number}.png"
        PIL.Image.fromarray(split.images.picture(int(row))).save(folder / name)
    (folder / "copy.png").write_bytes((folder / "1.png").read_bytes())
    return folder


def label(capfd, *words) -> dict:
    capfd.readouterr()
    with without_drawing():
        assert main.run(["label", *map(str, words), "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def read(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_label_correct_train(run, pictures, tiny, tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = label(capfd, pictures, "--model", run, "--count", 30)
    table = pictures / "labels.csv"
    rows = read(table)
    assert [row["file_name"] for row in rows] == [p["file_name"] for p in result["pictures"]]
    assert result["labels"] == str(table) and result["candidates"] == 41
    assert [sheet.name for sheet in sorted((tmp_path / "runs" / "pictures-label").iterdir())] == [
        "label_1.png"
    ]
    assert len({row["file_name"] for row in rows} & {"1.png", "copy.png"}) == 1  # one of two copies
    for row in rows:
        assert row["label"] == "" and row["suggested"] in LABELS
        assert 0.1 <= float(row["confidence"]) <= 1

    # Somebody's spreadsheet: semicolons, a byte order mark, names of their own, two rows not done.
    with table.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["file_name", "label", "suggested", "confidence", "note"])
        for place, row in enumerate(rows):
            name = ["boat", "bird"][place % 2] if place < 28 else " "
            writer.writerow([row["file_name"], name, row["suggested"], row["confidence"], "x"])
    corrected = table.read_bytes()
    words = ["train", "quickstart", "--model_name_or_path", tiny("resnet"), "--image_size", "null"]
    words += ["--dataset_name", pictures, "--test_fraction", "0.2", "--output_dir", "again"]
    with caplog.at_level("INFO", "hf_cifar"), without_drawing():
        assert main.run([str(word) for word in words]) == 0
    metrics = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert metrics["labels"] == ["bird", "boat"]
    assert metrics["train_samples"] + metrics["test_samples"] == 28
    messages = "\n".join(caplog.messages)
    assert "2 rows of labels.csv have no label and are left out" in messages
    assert "11 pictures are not listed in labels.csv and left out" in messages

    # Another round, with the model that was just trained, adds rows and changes none.
    second = label(capfd, pictures, "--model", "again", "--count", 50)
    assert len(second["pictures"]) == second["candidates"] == 11 and second["unlabelled"] == 13
    assert table.read_bytes().startswith(corrected)
    assert {line["suggested"] for line in second["pictures"]} <= {"bird", "boat"}
    names = [line.split(";")[0] for line in table.read_text("utf-8-sig").splitlines()[1:]]
    assert len(names) == len(set(names)) == 41


def test_the_same_pictures_each_time_and_suggestions_as_labels(run, pictures, tmp_path, capfd):
    words = [pictures, "--model", run, "--out", tmp_path / "sheets"]
    results = []
    for more in (["--count", 8], ["--count", 8], ["--count", 5], ["--count", 8, "--seed", 2]):
        (pictures / "labels.csv").unlink(missing_ok=True)
        results.append(label(capfd, *words, *more, "--prefill")["pictures"])
    assert results[0] == results[1] != results[3]
    assert results[0][:5] == results[2]
    assert all(row["label"] == row["suggested"] for row in read(pictures / "labels.csv"))


def test_uncertain_pictures_of_every_kind_come_first_and_copies_never():
    random = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(4, 16, generator=random)  # four kinds, three uncertain
    kinds = torch.arange(80) % 4
    features = centres[kinds] + 0.1 * torch.randn(80, 16, generator=random)
    features = torch.cat([features, features])  # each twice
    sure = torch.tensor([0.999, 0.0005, 0.0005])
    unsure = torch.tensor([0.4, 0.35, 0.25])
    probabilities = torch.where((kinds == 0)[:, None], sure, unsure).double().repeat(2, 1)
    first = badge_order(features, probabilities, 3, seed=1)
    assert sorted(kinds[first % 80].tolist()) == [1, 2, 3]
    many = badge_order(features, probabilities, 70, seed=1)
    assert len(set((many % 80).tolist())) == 70
    assert sorted(badge_order(features, probabilities, 500, seed=1).tolist()) == list(range(160))
    certain = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    assert sorted(badge_order(features[:6], certain, 4, seed=1).tolist()) == [0, 1, 2, 3]


def test_bad_input(run, pictures, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = ["label", pictures, "--model", run]
    assert "no such folder" in refused("label", tmp_path / "nowhere", "--model", run)
    assert "nowhere" in refused("label", pictures, "--model", "./nowhere")
    assert "--model" in refused("label", pictures)
    assert "from 1 on" in refused(*call, "--count", "0")
    assert "among the pictures" in refused(*call, "--out", pictures / "sheets")
    (tmp_path / "file").write_text("")
    assert "--out" in refused(*call, "--out", tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no picture" in refused("label", tmp_path / "empty", "--model", run)
    assert not (pictures / "labels.csv").exists()

    table = pictures / "labels.csv"
    table.write_text("number,name\n1,cat\n")
    assert "another table" in refused(*call)
    table.write_text("file_name,label\n" + "".join(f"{i}.png,cat\n" for i in (1, 3)))
    before = table.read_bytes()
    (pictures / "metadata.csv").write_text("file_name,label\n1.png,cat\n")
    assert "metadata.csv lists these pictures" in refused(*call)
    (pictures / "metadata.csv").unlink()
    (pictures / "5.png").write_bytes(b"no picture")
    assert "5.png" in refused(*call)
    assert table.read_bytes() == before


def test_a_table_without_any_label_and_one_that_lists_all(run, pictures, tmp_path, refused, capfd):
    out = ("--out", tmp_path / "sheets")
    label(capfd, pictures, "--model", run, *out)
    train = ["train", "quickstart", "--dataset_name", pictures, "--output_dir", tmp_path / "again"]
    assert "labels.csv: no picture has a label yet" in refused(*train)
    assert "lists all 41 pictures already" in refused("label", pictures, "--model", run, *out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(run, pictures, tmp_path, refused):
    pictures.chmod(0o555)
    try:
        line = refused("label", pictures, "--model", run, "--out", tmp_path / "sheets")
    finally:
        pictures.chmod(0o755)
    assert "labels.csv cannot be written" in line


def test_a_name_that_is_no_text(run, tmp_path, refused):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = PIL.Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    picture.save(os.fsencode(folder) + b"/caf\xe9.png")
    line = refused("label", folder, "--model", run, "--out", tmp_path / "sheets")
    assert "is no UTF-8 text" in line and not (folder / "labels.csv").exists()
