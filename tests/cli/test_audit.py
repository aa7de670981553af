"""`audit` on pictures with planted faults, and `exclude` in training."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from helpers.runs import without_drawing

from hf_cifar.cli import main
from hf_cifar.data.load import load_data
from hf_cifar.recipe.recipe import Recipe

FLIPPED = {
    "red/3.png",
    "red/17.png",
    "blue/8.png",
}  # in train; their pictures are of the other class


def picture(colour: str, random: np.random.Generator) -> np.ndarray:
    noise = random.integers(0, 60, (32, 32, 3))
    noise[..., 0 if colour == "red" else 2] += 180
    return noise.astype(np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Red and blue noise with wrong labels, duplicates, a blank and a broken picture."""
    folder, random = tmp_path / "pictures", np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for colour in ("red", "blue"):
            (folder / split / colour).mkdir(parents=True)
            for number in range(count):
                name = f"{colour}/{number}.png"
                flipped = split == "train" and name in FLIPPED
                shown = {"red": "blue", "blue": "red"}[colour] if flipped else colour
                PIL.Image.fromarray(picture(shown, random)).save(folder / split / name)
    train, test = folder / "train", folder / "test"
    (train / "red" / "copy.png").write_bytes((train / "red" / "5.png").read_bytes())
    (test / "red" / "leak.png").write_bytes((train / "red" / "6.png").read_bytes())
    PIL.Image.new("RGB", (32, 32), "blue").save(train / "blue" / "blank.png")
    (train / "blue" / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def audited(pictures, tiny, tmp_path, capfd) -> dict:
    words = ["audit", pictures, "--model", tiny("resnet"), "--out", tmp_path / "audit", "--json"]
    with without_drawing():
        assert main.run([str(word) for word in words]) == 0
    return json.loads(capfd.readouterr().out)


def test_planted_faults_are_named(audited, tmp_path):
    issues = {Path(issue["file"]).parts[-2:] for issue in audited["label_issues"]}
    assert {"/".join(name) for name in issues} >= FLIPPED
    assert [issue["score"] for issue in audited["label_issues"]] == sorted(
        issue["score"] for issue in audited["label_issues"]
    )
    exact = [pair for pair in audited["duplicates"] if pair["kind"] == "exact"]
    assert sorted((pair["split_a"], pair["split_b"]) for pair in exact) == [
        ("train", "test"),
        ("train", "train"),
    ]
    assert [Path(blank["file"]).name for blank in audited["blank"]] == ["blank.png"]
    assert [Path(name).name for name in audited["broken"]["train"]] == ["broken.png"]
    assert audited["classes"]["test"] == {"blue": 10, "red": 11}
    assert audited["sizes"]["train"] == {"32 x 32": 62}
    page = (tmp_path / "audit" / "index.html").read_text()
    assert "Exact duplicates, in pairs (2)" in page and "broken.png" in page
    assert (tmp_path / "audit" / "label.png").is_file()


def test_excluded_rows_leave_train_and_never_test(audited, pictures, tmp_path):
    table = pq.read_table(tmp_path / "audit" / "audit.parquet").to_pylist()
    listed = {row["row"] for row in table if row["exclude"] and row["split"] == "train"}
    keys = {"dataset_name": str(pictures), "on_bad_image": "skip", "validation_fraction": 0.0}
    whole = load_data(Recipe(**keys))
    data = load_data(Recipe(**keys, exclude=str(tmp_path / "audit" / "audit.parquet")))
    assert data.test is not None and whole.test is not None
    assert data.test.rows.tolist() == whole.test.rows.tolist()
    assert set(whole.train.rows.tolist()) - set(data.train.rows.tolist()) == listed
    assert data.excluded == len(listed) and data.fingerprint != whole.fingerprint
    cut = Recipe(**keys | {"validation_fraction": 0.5}, exclude=keys.get("exclude"))
    cut.exclude = str(tmp_path / "audit" / "audit.parquet")
    halves = load_data(cut)
    before = load_data(Recipe(**keys | {"validation_fraction": 0.5}))
    assert halves.validation is not None and before.validation is not None
    assert halves.validation.rows.tolist() == before.validation.rows.tolist()
    assert any("are in validation or test and stay there" in line for line in halves.messages)


def test_the_card_says_how_many_were_excluded(audited, pictures, tiny, tmp_path, train):
    exclude = str(tmp_path / "audit" / "audit.parquet")
    keys = {"dataset_name": str(pictures), "on_bad_image": "skip", "exclude": exclude}
    run = train("run", tiny("resnet"), method="linear", max_train_samples=None, **keys)
    excluded = run.metrics["excluded_samples"]
    assert excluded >= 5
    card = (run.path / "README.md").read_text()
    assert f"{excluded} images were left out of training" in card
    assert str(tmp_path) not in card


def test_an_exclude_file_of_another_data_set(audited, tiny, tmp_path, refused):
    exclude = tmp_path / "audit" / "audit.parquet"
    words = ["train", "quickstart", "--model_name_or_path", tiny("resnet"), "--image_size", "null"]
    words += ["--output_dir", tmp_path / "run", "--max_train_samples", "40", "--exclude"]
    assert "another data set" in refused(*words, exclude)
    assert "no file of `hf-cifar audit`" in refused(*words, _other_parquet(tmp_path))
    assert "nowhere.parquet" in refused(*words, tmp_path / "nowhere.parquet")


def _other_parquet(folder: Path) -> Path:
    import pyarrow as pa

    pq.write_table(pa.table({"row": [1]}), folder / "other.parquet")
    return folder / "other.parquet"


@pytest.mark.parametrize("dataset", ["./nowhere", "sample/none"])
def test_data_that_is_not_there(dataset, tiny, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dataset in refused("audit", dataset, "--model", tiny("resnet"))


def test_pictures_without_labels_and_other_bad_input(tiny, refused, tmp_path):
    (tmp_path / "plain").mkdir()
    picture("red", np.random.default_rng(0)).tofile(tmp_path / "plain" / "1.png")
    audit = ["audit", tmp_path / "plain", "--model", tiny("resnet")]
    assert "no pictures in class folders" in refused(*audit)
    assert "nowhere" in refused("audit", "sample", "--model", "./nowhere")
    (tmp_path / "file").write_text("")
    small = ["--max_train_samples", "40", "--max_eval_samples", "20"]
    words = ["audit", "sample", "--model", tiny("resnet"), *small, "--out"]
    assert "--out" in refused(*words, tmp_path / "file")


def test_one_class_is_looked_at_without_its_labels(tiny, tmp_path, capfd, caplog):
    (tmp_path / "one" / "red").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = picture("red", random)
        PIL.Image.fromarray(pixels).save(tmp_path / "one" / "red" / f"{number}.png")
    words = ["audit", tmp_path / "one", "--model", tiny("resnet"), "--out", tmp_path / "o"]
    with without_drawing():
        assert main.run([str(word) for word in [*words, "--json"]]) == 0
    assert json.loads(capfd.readouterr().out)["label_issues"] == []
    assert any("labels are not checked" in line for line in caplog.messages)
