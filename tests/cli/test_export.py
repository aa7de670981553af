"""`hf-cifar export` on a tiny run: its files, its figures, and files that are kept aside."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.label_sets import write_colour_folder
from helpers.runs import held_out_images, pipeline_probabilities, train_into
from safetensors.torch import load_file, save_file

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from hf_cifar.cli import main
from hf_cifar.export.session import logits_of, open_session
from hf_cifar.files import file_digest
from hf_cifar.hub.run_files import files_to_push, finished_metrics
from hf_cifar.runs.folder import MARKER

KEYS = {"method": "linear", "max_train_samples": 150, "max_eval_samples": 40}
GRAPHS = {
    "float32": "onnx/model.onnx",
    "int8": "onnx/model_quantized.onnx",
    "fp16": "onnx/model_fp16.onnx",
    "with_preprocessing": "onnx/model_with_preprocessing.onnx",
}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    return train_into(folder, tiny("resnet"), **KEYS)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    """A folder with all kinds of graphs of the run, which was exported into its own folder."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(trained.path, folder)
    words = ["--int8", "--fp16", "--with-preprocessing", "--max-loss", "30"]
    assert main.run(["export", str(folder), *words]) == 0
    return folder


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    shutil.copytree(trained.path, tmp_path / "copied")
    return tmp_path / "copied"


def export_facts(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())["export"]


def test_figures_of_all_kinds(exported):
    facts = export_facts(exported)
    assert facts["files"] == GRAPHS and facts["rejected"] == []
    assert facts["agreement"] == 1.0 and facts["max_logit_difference"] < 1e-4
    assert set(facts["accuracy"]) == {"torch", "float32", "int8", "fp16"}
    assert facts["accuracy"]["torch"] == finished_metrics(exported)["test_accuracy"]
    assert facts["int8_kind"] in ("static", "dynamic") and len(facts["int8_tried"]) >= 2
    assert facts["calibration_images"] + facts["judging_images"] <= 150
    for kind in ("float32", "int8", "fp16"):
        assert set(facts["images_per_second"][kind]) == {"1", "32"}
        assert facts["kinds"][kind]["paired"]["images"] == 40
        assert facts["bytes"][kind] == (exported / GRAPHS[kind]).stat().st_size
    assert facts["bytes"]["int8"] < 0.5 * facts["bytes"]["float32"]
    assert facts["bytes"]["fp16"] < 0.6 * facts["bytes"]["float32"]


def test_files_belong_to_the_run_and_are_pushed_on_request(exported):
    listed = json.loads((exported / MARKER).read_text())["files"]
    assert set(GRAPHS.values()) <= set(listed)
    assert not (exported / "onnx" / "rejected").exists()
    metrics = finished_metrics(exported)
    files = files_to_push(exported, metrics, "alice/net", onnx=True)
    assert set(GRAPHS.values()) <= set(files) and b"## ONNX" in files["README.md"]
    without = files_to_push(exported, metrics, "alice/net")
    assert not [name for name in without if name.startswith("onnx/")]
    assert b"## ONNX" not in without["README.md"] and b'"export"' not in without["metrics.json"]


def test_graphs_answer_as_pipeline(trained, exported):
    pictures, _ = held_out_images(trained)
    large = [picture.resize((160 + 7 * n, 90), 3) for n, picture in enumerate(pictures[:8])]
    session = open_session(exported / GRAPHS["with_preprocessing"])
    expected = pipeline_probabilities(exported, [*pictures[:8], *large])
    for picture, answer in zip([*pictures[:8], *large], expected, strict=True):
        (logits,) = logits_of(session, np.asarray(picture)[None])
        powers = np.exp(logits - logits.max())
        assert np.abs(powers / powers.sum() - answer).max() < 0.01
        assert logits.argmax() == answer.argmax()


def test_another_folder_gets_what_a_reader_needs(copied, tmp_path, refused, capfd):
    metrics = json.loads((copied / "metrics.json").read_text())
    del metrics["validation_samples"]  # as of a run that held nothing out
    (copied / "metrics.json").write_text(json.dumps(metrics))
    before = file_digest(copied / "metrics.json")
    out = tmp_path / "elsewhere"
    words = ["--out", str(out), "--max_eval_samples", "10", "--int8", "--max-loss", "100"]
    assert main.run(["export", str(copied), *words, "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["test_images"] == 10 and facts == json.loads((out / "export.json").read_text())
    tried = {one["logit_difference"]: name for name, one in facts["int8_tried"].items()}
    assert len(tried) == 3 and facts["int8_recipe"] == tried[min(tried)]
    assert facts["judging_split"] == "train"
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert names == [
        "config.json",
        "export.json",
        GRAPHS["float32"],
        GRAPHS["int8"],
        "preprocessor_config.json",
    ]
    assert file_digest(copied / "metrics.json") == before and not (copied / "onnx").exists()

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    message = refused("export", copied, "--out", tmp_path / "mine")
    assert "holds something else than an export (letter.txt)" in message


def test_a_graph_that_loses_accuracy_is_kept_aside(copied, capfd):
    # float16 ends at 65,504, so the logits of this classifier become infinite.
    weights = load_file(copied / "model.safetensors")
    for name in [name for name in weights if name.startswith("classifier")]:
        weights[name] = weights[name] * 1e7
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert main.run(["export", str(copied), "--fp16"]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "onnx/rejected/model_fp16.onnx" in last and "more than 0.5 points" in last
    assert (copied / "onnx/rejected/model_fp16.onnx").is_file()
    assert (copied / "onnx/model.onnx").is_file() and not (copied / GRAPHS["fp16"]).exists()
    assert export_facts(copied)["rejected"] == ["fp16"]
    files = files_to_push(copied, finished_metrics(copied), "alice/net", onnx=True)
    assert [name for name in files if name.startswith("onnx/")] == ["onnx/model.onnx"]

    assert main.run(["export", str(copied), "--max_eval_samples", "10"]) == 0
    graphs = [p.name for p in (copied / "onnx").rglob("*") if p.is_file()]
    assert graphs == ["model.onnx"]  # the rejected one is not of this export


def test_bad_input(copied, tmp_path, refused, monkeypatch):
    assert "no folder of a finished run" in refused("export", tmp_path / "nowhere")
    assert "only keys of the data" in refused("export", copied, "--learning_rate", "1")
    assert "run `hf-cifar export" in refused("push", copied, "--to", "alice/net", "--onnx")
    (copied / "model.safetensors").write_bytes(b"broken")
    assert "model.safetensors is damaged" in refused("export", copied)
    (copied / "metrics.json").unlink()
    assert "not finished" in refused("export", copied)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    assert "pip install 'hf-cifar[export]'" in refused("export", copied)


def test_a_model_of_several_labels(tiny, tmp_path):
    write_colour_folder(tmp_path / "colours", 160)
    keys = {
        "objective": "multi_label",
        "dataset_name": str(tmp_path / "colours"),
        "max_train_samples": None,
        "max_eval_samples": None,
        "num_train_epochs": 4,
        "random_resized_crop_scale": None,
    }
    run = train_into(tmp_path / "run", tiny("resnet"), **keys)
    assert main.run(["export", str(run.path), "--int8", "--max-loss", "100"]) == 0
    facts = export_facts(run.path)
    assert facts["agreement"] == 1.0 and facts["max_logit_difference"] < 1e-4
    assert facts["accuracy"]["torch"] == finished_metrics(run.path)["test_accuracy"]
    assert 0 < facts["kinds"]["int8"]["agreement"] <= 1
