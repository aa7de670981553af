"""Runs end to end: what a run leaves, that it repeats and resumes to the bit, and every method on
every family.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from filelock import FileLock
from helpers import tiny_models
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

import hf_cifar
from hf_cifar.data.load import load_split
from hf_cifar.errors import UserError
from hf_cifar.recipe.load import load_recipe
from hf_cifar.reporting import predictions
from hf_cifar.training import checkpoints
from hf_cifar.training.trainer import CifarTrainer, Diverged

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
METHODS = ("full", "linear", "partial", "lora")
BASE = {
    "dataset_name": "sample",
    "max_train_samples": 40,
    "max_eval_samples": 20,
    "validation_fraction": 0.1,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 20,
    "learning_rate": 0.005,
    "logging_steps": 2,
    "unfreeze_blocks": 1,
    "lora_r": 2,
    "lora_alpha": 4,
    "bf16": False,  # what is not said here is measured, and two measurements may differ
    "channels_last": False,
    "dataloader_num_workers": 0,
    "disable_tqdm": True,
}
TIMES = ("runtime", "per_second")


@pytest.fixture(autouse=True)
def _no_plots(request, monkeypatch):
    """Drawing is more than half of a tiny run; one test looks at the plots, and test_report at what
    is in them.
    """
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(predictions, "write_plots", lambda *_: None)


@pytest.fixture
def plots():
    """Asks for them."""


@pytest.fixture
def go(tmp_path):
    """go("run", model_folder, key=value, ...): train into tmp_path/run by a recipe file."""

    def train(name, model, fresh=False, **keys):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(BASE | {"model_name_or_path": str(model)} | keys))
        return hf_cifar.train(str(path), fresh=fresh, output_dir=str(tmp_path / name))

    return train


def weights(run):
    return load_file(run.path / "model.safetensors")


def same_weights(a, b):
    a, b = weights(a), weights(b)
    assert list(a) == list(b)
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, different


def history(run):
    """The log without what a clock says."""
    return [
        {k: v for k, v in entry.items() if not k.endswith(TIMES)}
        for entry in run.metrics["history"]
    ]


def numbers(run):
    """Metrics that must not differ between two runs of one recipe."""
    told = {
        k: v
        for k, v in run.metrics.items()
        if isinstance(v, float | int) and not any(t in k for t in TIMES)
    }
    return {k: v for k, v in told.items() if not k.startswith(("peak_", "seconds_", "energy_"))}


def held_out(run):
    """The run's test images as PIL, by its own recipe."""
    split = load_split(load_recipe(str(run.path / "recipe.yaml")), "test")
    return [
        PIL.Image.fromarray(p) for p in split.images.batch(split.rows).permute(0, 2, 3, 1).numpy()
    ], split.labels


def piped(folder, images, labels=LABELS):
    """float [n, C]: probabilities by `pipeline`, which knows nothing of this project."""
    answers = pipeline("image-classification", model=str(folder), top_k=len(labels))(images)
    return np.array(
        [
            [next(a["score"] for a in answer if a["label"] == name) for name in labels]
            for answer in answers
        ]
    )


# ---- every method on every family ----


# Every family and every method twice and more in the quick suite, all the rest in the slow one.
QUICK = {
    "vit": METHODS,
    "efficientnet": METHODS,
    "deit": ["partial"],
    "dinov2": ["linear"],
    "swin": ["lora"],
    "timm": ["full"],
}
QUICK |= {"convnext": ["lora"], "resnet": ["partial"], "timm_vit": ["linear"]}
PAIRS = [
    pytest.param(family, method, marks=[] if method in QUICK[family] else pytest.mark.slow)
    for family in tiny_models.FAMILIES
    for method in METHODS
]


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_run_of_every_method_and_family(family, method, tiny, go):
    run = go("run", tiny(family), method=method, lora_target_modules="all")
    images, labels = held_out(run)
    table = pq.read_table(run.path / "predictions.parquet").to_pydict()
    probabilities = np.array(table["probabilities"])
    assert np.abs(piped(run.path, images) - probabilities).max() < 1e-4
    assert table["label"] == labels.tolist() and table["index"] == list(range(20))
    assert table["prediction"] == probabilities.argmax(1).tolist()

    m = run.metrics
    assert m == json.loads((run.path / "metrics.json").read_text())
    assert (
        m["method"] == method
        and m["labels"] == LABELS
        and m["train_samples"] == 40
        and m["base_model"] == family
    )
    assert m["test_accuracy"] == np.mean(np.array(table["prediction"]) == labels)
    nll = -np.log(probabilities[np.arange(20), labels]).mean()
    assert m["test_nll"] == pytest.approx(nll, abs=1e-4)
    assert m["global_step"] == 10 and m["num_train_epochs"] == 2
    assert (
        0 < m["trainable_parameters"] <= m["total_parameters"] and m["forward_flops_per_image"] > 0
    )
    assert (m["trainable_parameters"] == m["total_parameters"]) == (method == "full")
    assert m["train_validation_gap"] == m["train_accuracy"] - m["validation_accuracy"]
    losses = [e["loss"] for e in m["history"] if "loss" in e]
    assert len(losses) == 5 and all(np.isfinite(losses)) and min(losses) < losses[0]
    assert [e["step"] for e in m["history"] if "eval_accuracy" in e] == [5, 10]
    best = max((e for e in m["history"] if "eval_accuracy" in e), key=lambda e: e["eval_accuracy"])
    assert m["best_step"] == best["step"]
    if method != "linear":
        assert m["validation_accuracy"] == pytest.approx(best["eval_accuracy"])

    if method == "linear":  # the backbone is as it was, in the file that others load
        before, after = load_file(tiny(family) / "model.safetensors"), weights(run)
        assert set(before) == set(after)
        assert (
            len({k.rsplit(".", 1)[0] for k in after if not torch.equal(before[k], after[k])}) == 1
        )

    assert not list(run.path.rglob("*.bin"))  # no pickle of the Trainer's
    config = (run.path / "config.json").read_text()
    assert str(run.path.parent) not in config + (run.path / "metrics.json").read_text()
    assert (run.path / "adapter").is_dir() == (method == "lora")
    if method == "lora":
        base = AutoModelForImageClassification.from_pretrained(tiny(family))
        onto = PeftModel.from_pretrained(base, run.path / "adapter").eval()
        merged = AutoModelForImageClassification.from_pretrained(run.path).eval()
        pixels = torch.randn(4, 3, 32, 32)
        with torch.inference_mode():
            want = merged(pixel_values=pixels).logits
            torch.testing.assert_close(onto(pixel_values=pixels).logits, want, atol=1e-4, rtol=0)


# ---- what a run leaves ----


def test_a_run_folder_is_complete(tiny, go, plots):
    run = go("run", tiny("vit"), report_to="tensorboard", image_size=48)
    left = {p.name for p in run.path.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "README.md",
        "recipe.yaml",
    } <= left
    assert {"metrics.json", "predictions.parquet", "plots", "checkpoints"} <= left
    assert not {".lock", "metrics.json.part", "training_args.bin"} & left
    drawn = {p.name for p in (run.path / "plots").iterdir()}
    assert {
        "learning_curves.png",
        "confusion_matrix.png",
        "per_class_accuracy.png",
        "mistakes.png",
    } <= drawn
    assert "reliability.png" in drawn
    kept = sorted(p.name for p in (run.path / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-10", "checkpoint-5"]
    assert all(checkpoints.damage(run.path / "checkpoints" / name) is None for name in kept)
    m = run.metrics
    low, high = m["test_accuracy_ci95"]
    assert 0 <= low <= m["test_accuracy"] <= high <= 1
    assert (
        m["versions"]["torch"] == torch.__version__.split("+")[0]
        or m["versions"]["torch"] == torch.__version__
    )
    assert (
        m["hardware"]["cores"] >= 1
        and m["peak_host_memory_bytes"] > 1e8
        and m["precision"] == "fp32"
    )
    assert m["image_size"] == 48 and m["recipe"]["image_size"] == 48
    assert len(m["dataset_fingerprint"]) == 64 and m["dataset"] == "sample"
    card = (run.path / "README.md").read_text()
    assert f"{m['test_accuracy']:.4f}"[:4] in card or f"{100 * m['test_accuracy']:.2f}" in card
    answer = run.pipeline()(held_out(run)[0][0])
    assert answer[0]["label"] in LABELS


def test_peak_memory_is_the_runs_own_not_that_of_what_started_it():
    large = np.ones(150_000_000)  # 1.2 GB here, touched, while the other process starts
    code = "import torch; from hf_cifar import hardware; print(hardware.peak_memory(torch.device('cpu')))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert 1e8 < int(told.split("'peak_host_memory_bytes': ")[1].split(",")[0]) < large.nbytes


def test_the_resolved_recipe_runs_again_to_the_same_bits(tiny, tmp_path, go):
    first = go("first", tiny("efficientnet"), seed=3)
    again = hf_cifar.train(str(first.path / "recipe.yaml"), output_dir=str(tmp_path / "again"))
    same_weights(first, again)
    assert history(first) == history(again)
    assert numbers(first) == numbers(again)
    other = hf_cifar.train(
        str(first.path / "recipe.yaml"), output_dir=str(tmp_path / "other"), seed=4
    )
    assert history(other) != history(first)


def test_a_finished_run_is_returned_and_another_recipe_refused(tiny, tmp_path, go):
    run = go("run", tiny("vit"), max_steps=2)
    times = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    again = go(
        "run", tiny("vit"), max_steps=2, license="mit"
    )  # says where it goes, not what it computes
    assert again.metrics == run.metrics
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file()} == {
        p: t for p, t in times.items() if p.is_file()
    }
    with pytest.raises(UserError) as caught:
        go("run", tiny("vit"), max_steps=2, learning_rate=0.5)
    assert "learning_rate (0.005 there, 0.5 here)" in str(caught.value) and "--fresh" in str(
        caught.value
    )
    fresh = go("run", tiny("vit"), fresh=True, max_steps=2, learning_rate=0.5)
    assert fresh.metrics["recipe"]["learning_rate"] == 0.5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        go("mine", tiny("vit"))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_fresh_removes_a_run_and_nothing_else(tiny, tmp_path, go):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="removes nothing"):
        go("mine", tiny("vit"), fresh=True)
    run = go("run", tiny("vit"), max_steps=1)
    (run.path / "notes.txt").write_text("mine")
    (run.path / "plots").mkdir(exist_ok=True)
    (run.path / "plots" / "old.png").write_text("the run's")
    go("run", tiny("vit"), fresh=True, max_steps=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert (run.path / "notes.txt").read_text() == "mine" and not (
        run.path / "plots" / "old.png"
    ).exists()


def test_two_processes_do_not_train_in_one_folder(tiny, tmp_path, go):
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(UserError, match="another process is training here"),
    ):
        go("run", tiny("vit"))


# ---- resume ----


class Cut(Exception):
    """The power goes."""


def cut_at(monkeypatch, step):
    """Let training die in the middle of this optimizer step, counted from the start of the process."""
    original, seen = CifarTrainer.training_step, []

    def training_step(self, *args, **kwargs):
        seen.append(0)
        if len(seen) == step:
            raise Cut
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CifarTrainer, "training_step", training_step)


EVERY_3 = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("efficientnet", {}),  # batch norms, dropout
        ("vit", {"optim": "sgd", "label_smoothing_factor": 0.1, "lr_scheduler_type": "linear"}),
        ("resnet", {"method": "partial"}),
        ("vit", {"method": "lora", "lora_dropout": 0.2}),
        ("resnet", {"method": "linear", "probe_learning_rates": [0.001, 0.01], "feature_views": 2}),
    ],
)
def test_a_run_that_was_cut_goes_on_to_the_same_bits(family, keys, tiny, go, monkeypatch):
    keys = EVERY_3 | keys
    whole = go("whole", tiny(family), **keys)
    for step in (
        (5, 5) if family == "efficientnet" else (8,)
    ):  # after checkpoint 3 and then 6, in either epoch; or once
        with monkeypatch.context() as m, pytest.raises(Cut):
            m.setattr(predictions, "write_plots", lambda *_: None)
            cut_at(m, step)
            go("cut", tiny(family), **keys)
    resumed = go("cut", tiny(family), **keys)
    same_weights(whole, resumed)
    assert history(resumed) == history(whole)
    ours, theirs = numbers(resumed), numbers(whole)
    assert ours == theirs


def test_a_damaged_checkpoint_is_passed_over(tiny, go, tmp_path, monkeypatch, caplog):
    whole = go("whole", tiny("vit"), **EVERY_3)
    with monkeypatch.context() as m, pytest.raises(Cut):
        cut_at(m, 8)
        go("cut", tiny("vit"), **EVERY_3)
    newest = tmp_path / "cut" / "checkpoints" / "checkpoint-6"
    path = newest / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level("INFO", "hf_cifar"):
        resumed = go("cut", tiny("vit"), **EVERY_3)
    assert (
        "checkpoint-6: optimizer.pt is not what was written" in caplog.text
        and "resuming from checkpoint-3" in caplog.text
    )
    same_weights(whole, resumed)


def test_death_between_training_and_metrics_loses_nothing(tiny, go, monkeypatch):
    whole = go("whole", tiny("vit"))
    with monkeypatch.context() as m, pytest.raises(Cut):
        m.setattr(predictions, "write_predictions", lambda *_: (_ for _ in ()).throw(Cut))
        go("cut", tiny("vit"))
    resumed = go("cut", tiny("vit"))
    same_weights(whole, resumed)
    assert numbers(whole) == numbers(resumed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("method", ["full", "linear"])
def test_a_killed_process_resumes_to_the_same_bits(method, number, tiny, tmp_path, go):
    keys = EVERY_3 | {
        "method": method,
        "num_train_epochs": 20,
        "save_total_limit": 3,
        "eval_steps": 10,
        "save_steps": 10,
    }
    whole = go("whole", tiny("resnet"), **keys)
    (tmp_path / "killed.yaml").write_text((tmp_path / "whole.yaml").read_text())
    command = [
        sys.executable,
        "-m",
        "hf_cifar",
        "train",
        str(tmp_path / "killed.yaml"),
        "--output_dir",
        str(tmp_path / "killed"),
    ]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoint.glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), said
    assert not (tmp_path / "killed" / "metrics.json").is_file()
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "resuming from" in done.stderr, done.stderr
    killed = hf_cifar.runs.run.Run(
        tmp_path / "killed", json.loads((tmp_path / "killed" / "metrics.json").read_text())
    )
    same_weights(whole, killed)
    evaluated = [
        [e for e in history(r) if "eval_accuracy" in e and e["step"] % 10 == 0]
        for r in (whole, killed)
    ]
    assert evaluated[0] == evaluated[1]


# ---- training ----


def test_accumulated_batches_are_the_big_batch(tiny, go):
    keys = {
        "optim": "sgd",
        "learning_rate": 0.05,
        "label_smoothing_factor": 0.1,
        "validation_fraction": 0,
    }
    keys |= {"num_train_epochs": 1, "max_train_samples": 32}
    big = go("big", tiny("vit"), per_device_train_batch_size=16, **keys)
    small = go(
        "small", tiny("vit"), per_device_train_batch_size=4, gradient_accumulation_steps=4, **keys
    )
    assert big.metrics["global_step"] == 2
    a, b = weights(big), weights(small)
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-6
    start = load_file(tiny("vit") / "model.safetensors")
    assert (
        max(float((a[k] - start[k]).abs().max()) for k in a if a[k].shape == start[k].shape) > 1e-4
    )


def test_the_best_checkpoint_on_validation_is_the_model(tiny, go):
    run = go(
        "run",
        tiny("resnet"),
        num_train_epochs=6,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        save_total_limit=1,
    )
    scores = {e["step"]: e["eval_accuracy"] for e in run.metrics["history"] if "eval_accuracy" in e}
    best = run.metrics["best_step"]
    assert (
        scores[best] == max(scores.values()) > min(scores.values())
        and scores[best] == run.metrics["validation_accuracy"]
    )
    kept = load_file(run.path / "checkpoints" / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(kept[k], v) for k, v in weights(run).items())
    assert {p.name for p in (run.path / "checkpoints").glob("checkpoint-*")} == {
        f"checkpoint-{best}",
        "checkpoint-30",
    }


@pytest.mark.parametrize("method", ["full", "linear"])
@pytest.mark.parametrize("views", [1, 2])
def test_without_validation(method, views, tiny, go):
    run = go(
        "run",
        tiny("vit"),
        method=method,
        feature_views=views,
        validation_fraction=0,
        probe_learning_rates=[0.001, 0.01],
    )
    assert "validation_accuracy" not in run.metrics and "train_validation_gap" not in run.metrics
    assert "test_accuracy" in run.metrics and run.metrics["best_step"] is None  # nothing was chosen


def test_fewer_images_than_a_batch(tiny, go):
    run = go("run", tiny("vit"), per_device_train_batch_size=64)
    assert run.metrics["global_step"] == 2


def test_heads_beside_each_other_learn_as_each_alone(tiny, go):
    """The sweep's best head is, to rounding, the head that is trained alone with its rates."""
    rates, decays = [0.0005, 0.02], [0.0, 0.5]
    sweep = go(
        "sweep",
        tiny("resnet"),
        method="linear",
        probe_learning_rates=rates,
        probe_weight_decays=decays,
    )
    found = sweep.metrics["probe_sweep"]
    assert [(e["learning_rate"], e["weight_decay"]) for e in found] == [
        (lr, wd) for lr in rates for wd in decays
    ]
    chosen = {k: sweep.metrics[k] for k in ("learning_rate", "weight_decay")}
    assert max(e["validation_accuracy"] for e in found) == sweep.metrics["validation_accuracy"]
    alone = go(
        "alone", tiny("resnet"), method="linear", max_grad_norm=0.0, save_strategy="no", **chosen
    )
    a, b = weights(sweep), weights(alone)
    if sweep.metrics["best_step"] == sweep.metrics["global_step"]:
        assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-4
    assert 0 <= sweep.metrics["knn_accuracy"] <= 1


def test_channels_last_is_the_same_model(tiny, go):
    plain, other = (
        go(f"{c}", tiny("resnet"), channels_last=c, optim="sgd", num_train_epochs=1)
        for c in (False, True)
    )
    a, b = weights(plain), weights(other)
    assert max(float((a[k] - b[k]).abs().max()) for k in a if a[k].dtype == torch.float32) < 1e-4


def test_bfloat16_trains_and_is_told(tiny, go):
    run = go("run", tiny("vit"), bf16=True)
    assert run.metrics["precision"] == "bf16"
    assert all(
        v.dtype == torch.float32 for v in weights(run).values()
    )  # autocast: the weights stay as they are


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step_and_what_to_do(tiny, go, tmp_path):
    with pytest.raises(Diverged) as caught:
        go("run", tiny("vit"), learning_rate=1e25, max_grad_norm=0, optim="sgd")
    said = str(caught.value)
    assert "not finite at step" in said and "learning_rate" in said and "\n" not in said
    assert not (tmp_path / "run" / "metrics.json").exists()


# ---- other data ----


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three classes of pictures of many sizes and modes, told apart by their colour."""
    folder, random = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, colour in (
            ("red", (220, 30, 30)),
            ("green", (30, 220, 30)),
            ("blue", (30, 30, 220)),
        ):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                height, width = random.integers(20, 90, 2)
                pixels = (
                    (np.array(colour) + random.integers(-30, 30, (height, width, 3)))
                    .clip(0, 255)
                    .astype(np.uint8)
                )
                picture = PIL.Image.fromarray(pixels)
                picture = picture.convert(("RGB", "P", "RGBA")[i % 3])
                picture.save(
                    folder
                    / split
                    / name
                    / f"{i}.{'png' if i % 2 else 'webp' if i % 3 != 1 else 'gif'}"
                )
    return folder


@pytest.mark.parametrize("method", ["full", "linear"])
def test_pictures_of_mixed_sizes_train(method, mixed, tiny, go):
    keys = {
        "dataset_name": str(mixed),
        "max_train_samples": None,
        "max_eval_samples": None,
        "image_size": 32,
        "method": method,
    }
    keys |= {"num_train_epochs": 4, "learning_rate": 0.01, "validation_fraction": 0.2}
    run = go("run", tiny("efficientnet"), **keys)
    assert run.metrics["labels"] == ["blue", "green", "red"] and run.metrics["test_accuracy"] > 0.5
    probabilities = np.array(
        pq.read_table(run.path / "predictions.parquet").to_pydict()["probabilities"]
    )
    files = sorted((mixed / "test").rglob("*.*"))
    by_pipeline = piped(run.path, [PIL.Image.open(p) for p in files], run.metrics["labels"])
    assert np.abs(np.sort(by_pipeline, 0) - np.sort(probabilities, 0)).max() < 1e-4
    if method == "full":
        workers = go("workers", tiny("efficientnet"), **keys | {"dataloader_num_workers": 2})
        same_weights(run, workers)


def test_data_without_a_test_split(mixed, tiny, go):
    keys = {
        "dataset_name": str(mixed / "train"),
        "test_fraction": 0.25,
        "max_train_samples": None,
        "max_eval_samples": None,
    }
    run = go("run", tiny("vit"), **keys, num_train_epochs=1)
    assert run.metrics["test_samples"] == 9 and run.metrics["labels"] == ["blue", "green", "red"]


def test_a_cache_elsewhere_changes_nothing(tiny, go, tmp_path, monkeypatch):
    first = go("first", tiny("vit"), method="linear")
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))
    second = go("second", tiny("vit"), method="linear")
    assert os.listdir(tmp_path / "cache")
    third = go("third", tiny("vit"), method="linear")  # features from the cache
    same_weights(first, second)
    same_weights(first, third)
