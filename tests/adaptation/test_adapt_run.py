"""`hf-cifar adapt` on pictures of four colours: what it writes, when it keeps the model, and bad
input.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import pipeline_probabilities, train_into, without_drawing
from PIL import Image
from safetensors.torch import load_file

from hf_cifar.adaptation.adapt import Outcome, too_costly
from hf_cifar.adaptation.answers import Answers
from hf_cifar.adaptation.base import Settings
from hf_cifar.cli.main import run as command
from hf_cifar.errors import UserError
from hf_cifar.evaluation.evaluate import evaluate
from hf_cifar.runs.adapt_run import AdaptOptions, adapt_run, parse_corruption, stream_run
from hf_cifar.runs.run import Run

COLOURS = {
    "blue": (40, 60, 200),
    "green": (40, 180, 60),
    "grey": (120, 120, 120),
    "red": (200, 50, 40),
}
OPTIONS = AdaptOptions("batch_norm", Settings(prior=4.0), batch_size=20)


def draw(folder: Path, count: int, names: list[str], seed: int, dim: float = 1.0) -> Path:
    """Noisy pictures of plain colours, in class folders; `dim` takes their contrast."""
    random = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(COLOURS[name]) + random.normal(0, 45, (32, 32, 3))
            pixels = 110 + dim * (pixels - 110)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                folder / name / f"{number:03}.png"
            )
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    draw(folder / "data" / "train", 60, list(COLOURS), 0)
    draw(folder / "data" / "test", 40, list(COLOURS), 1)
    draw(folder / "dull" / "test", 30, list(COLOURS), 2, dim=0.25)
    draw(folder / "dull" / "train", 2, list(COLOURS), 2, dim=0.25)
    draw(folder / "alike" / "test", 30, list(COLOURS), 3)
    draw(folder / "alike" / "train", 2, list(COLOURS), 3)
    draw(folder / "one", 60, ["red"], 4, dim=0.25)
    return folder


@pytest.fixture(scope="module")
def finished(colours: Path, tiny: Callable[[str], Path]) -> Run:
    return train_into(
        colours / "run",
        tiny("resnet"),
        dataset_name=str(colours / "data"),
        max_train_samples=200,
        max_eval_samples=160,
        num_train_epochs=4,
        random_resized_crop_scale=None,
    )


def test_a_new_run_that_pipeline_loads_and_whose_card_says_so(
    finished: Run, colours: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    with without_drawing():
        outcome, folder = adapt_run(
            str(finished.path), str(colours / "dull"), {}, OPTIONS, str(out)
        )
    assert not outcome.kept and folder == out, outcome.reason
    assert outcome.target_before is not None and outcome.target_after is not None
    assert outcome.target_after > outcome.target_before + 0.1
    scored = evaluate(str(out), str(colours / "dull"), "test", 20, "fp32", "none")
    assert scored["test_accuracy"] == pytest.approx(outcome.target_after)
    own = evaluate(str(out), None, "test", 20, "fp32", "none")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test_accuracy"] == pytest.approx(own["test_accuracy"])
    assert metrics["test_accuracy"] == pytest.approx(outcome.source_after)
    assert metrics["adaptation"]["target"] == "dull" and "validation_accuracy" not in metrics
    assert str(colours) not in json.dumps(metrics)
    card = (out / "README.md").read_text()
    assert "## Adaptation" in card and "adapted to 120 images of dull" in card
    picture = Image.open(colours / "dull" / "test" / "red" / "000.png").convert("RGB")
    assert pipeline_probabilities(out, [picture], list(COLOURS)).shape == (1, 4)
    before = load_file(finished.path / "model.safetensors")
    after = load_file(out / "model.safetensors")
    changed = {name for name in after if not after[name].equal(before[name])}
    assert changed and all("running_" in name for name in changed)
    with pytest.raises(UserError, match="not empty"):
        adapt_run(str(finished.path), str(colours / "dull"), {}, OPTIONS, str(out))


def test_the_model_is_kept_without_a_shift(finished: Run, colours: Path, tmp_path: Path) -> None:
    outcome, folder = adapt_run(
        str(finished.path), str(colours / "alike"), {}, OPTIONS, str(tmp_path / "new")
    )
    assert outcome.kept and folder is None and "no shift" in outcome.reason
    assert not (tmp_path / "new").exists()


def test_the_guard_fires_on_images_of_one_class(
    finished: Run, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--dataset", str(colours / "one"), "--no-labels", "--batch_size", "20"]
    words += ["--split", "train", "--output_dir", str(tmp_path / "new"), "--json"]
    assert command(["adapt", str(finished.path), *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kept"] and "few classes" in facts["reason"]
    assert {"source_before", "source_after", "target_before", "target_after"} <= set(facts)
    assert not (tmp_path / "new").exists()


def test_one_class_after_another_is_never_worse_with_the_guard(
    finished: Run, colours: Path
) -> None:
    """The folders are read class by class, so that batches hold one class."""
    with_guard = stream_run(str(finished.path), str(colours / "alike"), {}, OPTIONS, reset=False)
    assert with_guard["target_after"] >= with_guard["target_before"] - 0.01
    assert int(with_guard["reason"].split()[0]) >= 4  # of six batches of 20


def test_a_limit_on_what_the_source_may_lose() -> None:
    nothing = Answers(np.zeros((1, 1)), np.ones((1, 1)))
    outcome = Outcome(False, "", 0.93, 0.885, 0.4, 0.7, 1e-9, nothing)
    assert too_costly(outcome, None) == too_costly(outcome, 0.05) == ""
    assert "cost 4.5 points on the source" in too_costly(outcome, 0.04)


def test_pictures_without_class_folders(finished: Run, colours: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted((colours / "dull" / "test").rglob("*.png"))):
        (flat / f"{number}.png").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="no pictures in class folders"):
        adapt_run(str(finished.path), str(flat), {}, OPTIONS, str(tmp_path / "new"))
    words = ["--dataset", str(flat), "--no-labels", "--batch_size", "20"]
    out = tmp_path / "new"
    with without_drawing():
        code = command(["adapt", str(finished.path), *words, "--output_dir", str(out)])
    assert code == 0
    assert json.loads((out / "metrics.json").read_text())["adaptation"]["target_after"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--batch_size", "500"], "fewer than a batch"),
        (["--batch_size", "500", "--stream"], "fewer than a batch"),
        (["--batch_size", "1"], "two images or more"),
        (["--source_images", "1"], "two images or more"),
        (["--stream", "--output_dir", "new"], "--output_dir: --stream writes no run"),
        (["--stream", "--max-source-loss", "0.1"], "--max-source-loss: --stream"),
        (["--corruption", "fog:6"], "such as fog:5"),
        (["--corruption", "rain:3"], "such as fog:5"),
        (["--reset"], "add --stream"),
        (["--learning_rates", "1"], "only keys of the data"),
        (["--adaptation", "magic"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], says: str, finished: Run, colours: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = ["--dataset", str(colours / "dull")]
    assert command(["adapt", str(finished.path), *dataset, *words]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


def test_the_run_itself_is_never_overwritten(
    finished: Run, colours: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (finished.path / "metrics.json").read_bytes()
    words = ["--dataset", str(colours / "dull"), "--batch_size", "20", "--fresh"]
    command(["adapt", str(finished.path), *words, "--output_dir", f"{finished.path}/../run"])
    assert "is the run itself" in capsys.readouterr().err
    assert (finished.path / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("name", ["eata", "coral"])
def test_what_needs_the_source_adapts_online_too(name: str, finished: Run, colours: Path) -> None:
    options = AdaptOptions(name, Settings(learning_rate=1e-3), batch_size=119)  # and one more
    facts = stream_run(str(finished.path), str(colours / "dull"), {}, options, reset=False)
    assert not facts["kept"] and facts["target_after"] > facts["target_before"] + 0.1
    assert facts["reason"].startswith("1 of 2 batches")


def test_labels_that_mean_nothing_and_models_that_are_no_run(
    finished: Run, colours: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        for name in ("x", "y"):
            (tmp_path / "other" / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "other" / split / name / "1.png")
    with pytest.raises(UserError, match="--no-labels"):
        adapt_run(str(finished.path), str(tmp_path / "other"), {}, OPTIONS, str(tmp_path / "new"))
    with pytest.raises(UserError, match="no finished run"):
        adapt_run(str(tmp_path), None, {}, OPTIONS, None)
    assert parse_corruption("glass-blur:2") == ("glass_blur", 2)
