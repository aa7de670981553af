"""Exported runs in the hands of real clients: onnxruntime where there is no torch, and
transformers.js in node. Both are installed by their own package managers, which needs a network.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers import tiny_models
from helpers.runs import LABELS, train_into
from transformers import pipeline

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from hf_cifar.data.load import load_split
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.runs.export_run import ExportOptions, export_run

pytestmark = [pytest.mark.real, pytest.mark.slow]
CHILDREN = Path(__file__).parents[1] / "helpers" / "children"
TEST_IMAGES, PHOTOGRAPHS, SIDE = 200, 20, 64
# In node, transformers.js 4.3 resizes with sharp's affine transform, which moves an enlarged
# picture and does not antialias a shrunk one. Its answers are compared for pictures of the model's
# own size, and for any size through the graph that resizes itself.


@pytest.fixture(scope="module", params=["resnet", "vit", "dinov2", "timm"])
def run(request, tmp_path_factory) -> Path:
    """An exported run of a tiny model that sees CIFAR-10's images enlarged to 64 px."""
    folder = tmp_path_factory.mktemp("clients")
    model = tiny_models.save(request.param, folder / "model")
    keys = {"method": "linear", "max_train_samples": 400, "image_size": SIDE}
    path = train_into(folder / "run", model, **keys).path
    options = ExportOptions(with_preprocessing=True)
    facts = export_run(str(path), {"max_eval_samples": "50"}, options)
    assert facts["agreement"] == 1.0 and facts["max_logit_difference"] < 1e-4
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    """Folders of PNGs: test images of the sample, the same in the model's size, and pictures of
    1,600 x 900 px made of them.
    """
    split = load_split(Recipe(dataset_name="sample"), "test")
    root = tmp_path_factory.mktemp("pictures")
    counts = {"small": TEST_IMAGES, "own size": TEST_IMAGES, "large": PHOTOGRAPHS}
    for name, count in counts.items():
        (root / name).mkdir()
        for number in range(count):
            picture = PIL.Image.fromarray(split.images.picture(int(split.rows[number])))
            if name == "own size":
                picture = picture.resize((SIDE, SIDE), PIL.Image.BICUBIC)
            if name == "large":
                grain = np.random.default_rng(number).integers(-12, 12, (900, 1600, 3))
                large = np.asarray(picture.resize((1600, 900), PIL.Image.BICUBIC), np.int64)
                picture = PIL.Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))
            picture.save(root / name / f"{number:03}.png")
    return {name: root / name for name in counts}


def answers_of_pipeline(run: Path, folder: Path) -> list[str]:
    classify = pipeline("image-classification", model=str(run), top_k=1)
    return [classify(str(path))[0]["label"] for path in sorted(folder.glob("*.png"))]


def printed_json(*command) -> list:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def install(*command, cwd: Path) -> None:
    """Run a package manager; skip the test where it is absent or has no network."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not here")
    result = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"{command[0]} could not install: {result.stderr.splitlines()[-1:]}")


@pytest.fixture(scope="module")
def python_without_torch(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("no_torch")
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    install(uv, "venv", "--python", sys.executable, root / "venv", cwd=root)
    python = root / "venv" / "bin" / "python"
    install(uv, "pip", "install", "--python", python, "onnxruntime", "pillow", cwd=root)
    return python


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("node")
    (root / "package.json").write_text('{"private": true, "type": "module"}')
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund")
    install("npm", "install", *quiet, "@huggingface/transformers", cwd=root)
    shutil.copy(CHILDREN / "classify.mjs", root)
    return root


def test_onnxruntime_without_torch(run, pictures, python_without_torch, tmp_path):
    script = CHILDREN / "classify_with_onnxruntime.py"
    graph = run / "onnx" / "model_with_preprocessing.onnx"
    for folder in pictures.values():
        expected = answers_of_pipeline(run, folder)
        numbers = printed_json(python_without_torch, script, graph, folder)
        assert [LABELS[number] for number in numbers] == expected
    processor = load_classifier(str(run)).transforms.processor
    for path in sorted(pictures["small"].glob("*.png")):
        pixels = processor(images=PIL.Image.open(path), return_tensors="np")["pixel_values"][0]
        np.save(tmp_path / f"{path.stem}.npy", pixels)
    plain = run / "onnx" / "model.onnx"
    numbers = printed_json(python_without_torch, script, plain, tmp_path)
    assert [LABELS[number] for number in numbers] == answers_of_pipeline(run, pictures["small"])


def test_transformers_js(run, pictures, node_modules):
    if "timm" in (run / "config.json").read_text():
        pytest.skip("transformers.js knows no timm model")
    command = ("node", node_modules / "classify.mjs", run.parent, run.name)
    for name in ("small", "large"):
        expected = answers_of_pipeline(run, pictures[name])
        assert printed_json(*command, pictures[name], "graph") == expected
    expected = answers_of_pipeline(run, pictures["own size"])
    assert printed_json(*command, pictures["own size"], "pipeline") == expected
