"""`predict --out`: the answers of single pictures, for any number of them, in one file."""

import json
import os
import shutil

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from helpers import tiny_models
from helpers.forked import ForkedRun, call_at_path, kill_this_process
from helpers.picture_server import serving
from helpers.pictures import encoded, noise
from helpers.runs import train_into, without_drawing

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.evaluation.bulk_layout import choose_layout
from hf_cifar.evaluation.bulk_predict import bulk_predict
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.evaluation.picture_list import TableRows
from hf_cifar.evaluation.predict import predict


@pytest.fixture
def pictures(tmp_path):
    """A folder of 40 pictures of several sizes and kinds, in it and below."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(40):
        image = PIL.Image.fromarray(noise(number, 20 + number % 17, 30 + number % 3))
        kind, below = ("png", "webp", "tiff")[number % 3], "more/" * (number % 2)
        image.save(folder / f"{below}{number:02}.{kind}")
    return folder


def answered(out):
    return pq.read_table(out).to_pylist()


def assert_same_answers(rows, expected):
    """Compare with {name: labels} of `predict`."""
    assert [row["image"] for row in rows] == list(expected)
    for row in rows:
        labels = expected[row["image"]]
        assert [answer["label"] for answer in row["labels"]] == [a["label"] for a in labels]
        scores = [answer["score"] for answer in row["labels"]]
        assert scores == pytest.approx([a["score"] for a in labels], abs=1e-6)
        assert (row["label"], row["score"]) == tuple(row["labels"][0].values())


@pytest.mark.parametrize("family", ["vit", "resnet", "dinov2"])
def test_the_answers_of_single_pictures(family, tiny, pictures, tmp_path):
    model, out = str(tiny(family)), tmp_path / "answers.parquet"
    counts = bulk_predict(model, [str(pictures)], out, top=3, batch_size=16)
    assert counts == {"pictures": 40, "errors": 0, "none_of_these": 0}
    assert_same_answers(answered(out), dict(predict(model, [str(pictures)], top=3)))
    assert {row["none_of_these"] for row in answered(out)} == {None}
    assert [path.name for path in tmp_path.iterdir() if path != pictures] == ["answers.parquet"]


@pytest.mark.parametrize("count, alike, batch", [(2000, True, 32), (2000, False, 8), (32, True, 8)])
def test_batches_are_large_where_they_answer_as_single_pictures_do(tiny, count, alike, batch):
    classifier = load_classifier(str(tiny("resnet")))
    classifier.model.train(not alike)  # batch norm then lets pictures change each other's answers
    table = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), np.uint8)
    assert choose_layout(classifier, TableRows("test", table), "fp32") == [False, False, batch]


def test_bad_pictures_are_listed(tiny, pictures, tmp_path, capfd):
    expected = dict(predict(str(tiny("vit")), [str(pictures)], top=1))
    (pictures / "empty.png").touch()
    (pictures / "text.jpg").write_text("no picture")
    os.mkfifo(pictures / "pipe.png")
    half = encoded(noise(0, 200, 200), "JPEG")
    (pictures / "half.jpg").write_bytes(half[: len(half) // 2])
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    PIL.Image.fromarray(deep).save(pictures / "deep.png")
    (pictures / os.fsdecode(b"\xff.png")).write_bytes(encoded(noise(0)))
    out = tmp_path / "answers.parquet"
    words = ["predict", str(tiny("vit")), str(pictures), "--top", "1", "--out", str(out)]
    assert main.run([*words, "--json"]) == 0
    counts = json.loads(capfd.readouterr().out)
    assert counts == {"out": str(out), "pictures": 46, "errors": 5, "none_of_these": 0}
    rows = {os.path.basename(row["image"]): row for row in answered(out)}
    errors = {name: row["error"] for name, row in rows.items() if row["error"]}
    assert errors.keys() == {"empty.png", "text.jpg", "pipe.png", "half.jpg", "deep.png"}
    assert errors["pipe.png"] == "it is not a regular file"
    assert "more than 8 bits" in errors["deep.png"] and "truncated" in errors["half.jpg"]
    assert rows["empty.png"]["label"] is None and rows["empty.png"]["labels"] is None
    assert rows["\\xff.png"]["label"] is not None
    good = [row for row in answered(out) if row["image"] in expected]
    assert_same_answers(good, expected)


def test_the_strict_end_at_the_first_bad_picture(tiny, pictures, tmp_path):
    (pictures / "z.png").touch()
    out, words = tmp_path / "answers.parquet", [str(pictures)]
    with pytest.raises(UserError, match=r"z\.png: it is empty; repair or remove it"):
        bulk_predict(str(tiny("vit")), words, out, top=1, on_bad_image="error")
    assert list(tmp_path.iterdir()) == [pictures]  # nothing to go on from
    (pictures / "z.png").unlink()
    bulk_predict(str(tiny("vit")), words, out, top=1, on_bad_image="error")
    assert len(answered(out)) == 40


def test_the_fastest_precision_names_the_same_classes(tiny, pictures, tmp_path):
    for precision in ("fp32", "auto"):
        out = tmp_path / f"{precision}.parquet"
        bulk_predict(str(tiny("resnet")), [str(pictures)], out, top=10, precision=precision)
    exact, fast = (answered(tmp_path / f"{name}.parquet") for name in ("fp32", "auto"))
    for first, second in zip(exact, fast, strict=True):
        scores = {answer["label"]: answer["score"] for answer in second["labels"]}
        expected = {answer["label"]: answer["score"] for answer in first["labels"]}
        assert scores == pytest.approx(expected, abs=0.05)


def test_outputs_that_are_not_finite(tiny, pictures, tmp_path):
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(tiny("vit"), tmp_path / "net")
    weights = load_file(model / "model.safetensors")
    weights["classifier.weight"].fill_(3e38)  # finite, but no sum of products with it is
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "answers.parquet"
    assert bulk_predict(str(model), [str(pictures)], out, top=1)["errors"] == 40


def test_deep_pixels_are_converted_as_in_training(tiny, tmp_path):
    model = shutil.copytree(tiny("vit"), tmp_path / "net")
    tiny_models.edit_config(model, deep_pixels=[0, 4095])
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    names = [str(tmp_path / "deep.png")]
    bulk_predict(str(model), names, tmp_path / "answers.parquet", top=2)
    expected = dict(predict(str(model), names, top=2))
    assert_same_answers(answered(tmp_path / "answers.parquet"), expected)


def test_none_of_these(tiny, pictures, tmp_path):
    keys = {"method": "linear", "max_train_samples": 150, "validation_fraction": 0.2}
    model = str(train_into(tmp_path / "run", tiny("resnet"), max_eval_samples=20, **keys).path)
    with without_drawing():
        assert main.run(["calibrate", model, "--reject", "0.5"]) == 0
    out = tmp_path / "answers.parquet"
    for number in range(20):  # some like those that it was trained on, with less noise
        picture = PIL.Image.fromarray(noise(number, 8, 8)).resize((32, 32))
        picture.save(pictures / f"smooth-{number}.png")
    counts = bulk_predict(model, [str(pictures)], out, top=2)
    rows, expected = answered(out), dict(predict(model, [str(pictures)], top=2))
    assert_same_answers(rows, expected)
    rejected = [row["none_of_these"] for row in rows]
    assert rejected == [len(labels) == 3 for labels in expected.values()]
    assert counts["none_of_these"] == sum(rejected) > 0
    assert {row["label"] for row in rows if row["none_of_these"]} == {"none of these"}


def test_urls_are_downloaded_once_and_their_errors_listed(tiny, tmp_path):
    content = {f"/{number}.png": encoded(noise(number)) for number in range(20)}
    broken = b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\nhalf"
    with serving(content | {"/broken": lambda file: file.write(broken)}) as server:
        names = [server.root + path for path in (*content, "/none.png", "/broken")]
        bulk_predict(str(tiny("vit")), names, tmp_path / "answers.parquet", top=1)
    assert set(server.asked.values()) == {1} and len(server.asked) == 22
    rows = answered(tmp_path / "answers.parquet")
    assert [row["image"] for row in rows] == names
    assert [bool(row["error"]) for row in rows] == [False] * 20 + [True, True]
    assert "404" in rows[20]["error"]


def test_rows_of_data_sets(tiny, pictures, tmp_path):
    model = str(tiny("vit"))
    bulk_predict(model, ["sample"], tmp_path / "sample.parquet", top=2)
    rows = answered(tmp_path / "sample.parquet")
    assert [row["image"] for row in rows] == [f"test {row}" for row in range(1000)]
    table = np.stack([noise(number, 32, 32) for number in range(12)])
    np.save(tmp_path / "fog.npy", table)
    np.save(tmp_path / "labels.npy", np.zeros(12, np.uint8))
    bulk_predict(model, [str(tmp_path / "fog.npy")], tmp_path / "fog.parquet", top=2)
    files = [tmp_path / f"{number}.png" for number in range(12)]
    for pixels, file in zip(table, files, strict=True):
        PIL.Image.fromarray(pixels).save(file)
    expected = [labels for _, labels in predict(model, list(map(str, files)), top=2)]
    named = {f"test {row}": labels for row, labels in enumerate(expected)}
    assert_same_answers(answered(tmp_path / "fog.parquet"), named)


def test_answers_of_before_beside_the_pictures_are_no_data_set(tiny, pictures):
    for name in ("first.parquet", "test.parquet"):
        counts = bulk_predict(str(tiny("vit")), [str(pictures)], pictures / name, top=1)
        assert counts["pictures"] == 40


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["{pictures}", "--out", "answers.csv"], "ends in .parquet"),
        (["{pictures}", "--split", "test"], "--split goes with --out FILE"),
        (["{pictures}", "--split", "test", "--out", "a.parquet"], "is no data set"),
        (["{pictures}", "typo.png", "--out", "a.parquet"], "typo.png: No such file"),
        (["sample", "--split", "validation", "--out", "a.parquet"], "has no validation split"),
        (["{pictures}", "--out", "{pictures}/none/../00.png/a.parquet"], "cannot write to"),
    ],
)
def test_bad_input(words, why, tiny, pictures, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.format(pictures=pictures) for word in words]
    assert main.run(["predict", str(tiny("vit")), *words]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "hf-cifar: " in line]
    assert why in line
    assert list(tmp_path.iterdir()) == [pictures]


class Prediction(ForkedRun):
    """`predict --out` of the 2,000 training pictures of the sample, which makes two parts."""

    out = property(lambda self: self.root / "answers.parquet")
    top = 3

    @property
    def words(self):
        model, top = str(self.model), str(self.top)
        return [
            *("predict", model, "sample", "--split", "train", "--top", top),
            *("--out", str(self.out), "--json"),
        ]

    def kill_at(self, pattern, change=1, victim=0):
        def prepare(rank):
            if rank == victim:
                call_at_path(self.root, pattern, kill_this_process, change)

        assert self.wait(self.start(prepare))[victim] == -9, self.output()


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """The content of the file that one process writes without a stop."""
    run = Prediction(tmp_path_factory.mktemp("whole") / "at", tiny("vit"), {})
    assert run.run_to_end() == 0, run.output()
    assert [row["image"] for row in answered(run.out)] == [f"train {row}" for row in range(2000)]
    return run.out.read_bytes()


def test_killed_while_it_writes_a_part_and_the_output(tiny, tmp_path, undisturbed):
    run = Prediction(tmp_path / "at", tiny("vit"), {})
    parts = run.root / "answers.parquet.parts"
    run.kill_at("*part-000001*")
    first = (parts / "part-000000.parquet").stat().st_mtime_ns
    assert not run.out.exists()
    run.top = 2
    assert run.run_to_end() == 2
    assert "other answers (another --top); name another --out" in run.one_line_error(2)
    run.top = 3
    run.kill_at("*/answers.parquet.0-*")
    assert (parts / "part-000000.parquet").stat().st_mtime_ns == first
    run.kill_at("*/answers.parquet.0-*", change=3)  # it was opened and renamed
    assert run.out.read_bytes() == undisturbed and parts.is_dir()
    assert run.run_to_end() == 0 and "holds these answers already" in run.output()
    assert run.out.read_bytes() == undisturbed and not parts.exists()
    run.top = 1
    assert run.run_to_end() == 2 and "exists and holds something else" in run.one_line_error(2)


def test_two_processes_write_the_file_of_one_also_after_a_kill(tiny, tmp_path, undisturbed):
    pair = Prediction(tmp_path / "at", tiny("vit"), {}, processes=2)
    pair.kill_at("*part-000001*", victim=1)
    assert pair.run_to_end() == 0, pair.output()
    assert pair.out.read_bytes() == undisturbed
    left = {path.name for path in pair.root.iterdir() if "answers" in path.name}
    assert left == {"answers.parquet"}
