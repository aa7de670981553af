"""Recipes as files: what is read, what is refused and with which words, and that the resolved one
says the same again.
"""

import dataclasses
import math
import re
import runpy
import types
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_cifar.cli.options import keys_help, parse_overrides
from hf_cifar.errors import UserError
from hf_cifar.recipe.checks import NEED_SINGLE_LABEL, NOTHING_IN_LINEAR, SINGLE_LABEL
from hf_cifar.recipe.fields import (
    BLOCKS,
    PATHS,
    REFUSED,
    TRAINING_DEFAULTS,
    TRAINING_TYPES,
    project_fields,
    training_types,
)
from hf_cifar.recipe.load import find_recipe, load_recipe
from hf_cifar.recipe.recipe import Recipe, packaged, recipe_names
from hf_cifar.recipe.types import validate
from hf_cifar.recipe.yaml_text import write_yaml

ROOT = Path(__file__).parents[2]
DEFAULTS = "seed: 0\n"  # a recipe of nothing but defaults
OWN_HINTS = typing.get_type_hints(Recipe, include_extras=True)


def written(folder, text, name="mine.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(path, **overrides):
    """The one line that refuses this recipe."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- what is refused ----


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("lora_rank", "lora_r"),
        ("image_sise", "image_size"),
        ("datset_name", "dataset_name"),
        ("model_name", "model_name_or_path"),
        ("per_device_batch_size", "per_device_eval_batch_size"),
    ],
)
def test_unknown_key_names_file_key_and_nearest(tmp_path, typed, meant):
    path = written(tmp_path, f"{typed}: 1\n")
    assert refusal(path) == f"{path}: {typed}: no such key; did you mean `{meant}`?"


def test_unknown_key_with_nothing_near(tmp_path):
    assert "`hf-cifar train --help` lists them" in refusal(written(tmp_path, "zzqx: 1\n"))


def test_bad_override_is_blamed_on_the_command_line_not_the_file(tmp_path):
    message = refusal(written(tmp_path, "lora_r: 8\n"), lora_r="many")
    assert message == "command line: lora_r: must be a whole number, got 'many'"


@pytest.mark.parametrize(
    ("line", "must"),
    [
        ("method: lorra", "one of full, linear, partial, lora"),
        ("image_size: big", "a whole number or null"),
        ("image_size: 2.5", "a whole number or null"),
        ("lora_r: true", "a whole number"),
        ("validation_fraction: true", "a number"),
        ("validation_fraction: null", "a number"),
        ("learning_rate: fast", "a number"),
        ("center_crop: 1", "true or false"),
        ("from_scratch: maybe", "true or false"),
        ("dataset_name: 7", "text"),
        ("model_config: vit", "a mapping or null"),
        ("model_config: [1]", "a mapping or null"),
        ("random_resized_crop_ratio: [0.1, fast]", "a list of numbers"),
        ("random_resized_crop_scale: {a: 1}", "a list of numbers or null"),
        ("lr_scheduler_type: cosin", "one of linear, cosine,"),
        ("gradient_checkpointing: 3", "true or false"),
        ("max_steps: 1e3", "a whole number"),
        ("learning_rate: 1" + "0" * 400, "a number"),
    ],
)
def test_wrong_type_says_what_it_must_be(tmp_path, line, must):
    path, key = written(tmp_path, line + "\n"), line.split(":")[0]
    message = refusal(path)
    assert message.startswith(f"{path}: {key}: must be ") and must in message


@pytest.mark.parametrize(
    ("line", "bound"),
    [
        ("learning_rate: -0.001", "above 0"),
        ("learning_rate: 0", "above 0"),
        ("learning_rate: .nan", "finite"),
        ("learning_rate: .inf", "finite"),
        ("validation_fraction: 0.95", "at most 0.9"),
        ("validation_fraction: -0.1", "at least 0"),
        ("image_size: 4", "at least 8"),
        ("image_size: 100000", "at most 4096"),
        ("random_resized_crop_ratio: [0, 0.1]", "above 0"),
        ("horizontal_flip: 1.5", "at most 1"),
        ("lora_dropout: 1", "at most 0.99"),
        ("per_device_train_batch_size: 0", "at least 1"),
        ("seed: -1", "at least 0"),
        ("ema_decay: 1", "at most 0.999999"),
        ("head_epochs: -1", "at least 0"),
        ("early_stopping_patience: 0", "at least 1"),
        ("num_train_epochs: 0", "above 0"),
        ("train_samples_per_class: 0", "at least 1"),
    ],
)
def test_out_of_range_says_the_bound(tmp_path, line, bound):
    path, key = written(tmp_path, line + "\n"), line.split(":")[0]
    message = refusal(path)
    assert message.startswith(f"{path}: {key}: must be ") and bound in message


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_keys_that_are_not_the_users_are_refused_with_the_reason(tmp_path, key):
    path = written(tmp_path, f"{key}: x\n")
    assert refusal(path) == f"{path}: {key}: can't be set: {REFUSED[key]}"
    assert refusal("quickstart", **{key: "x"}).startswith("command line: ")


def test_a_token_is_refused_without_being_repeated(tmp_path):
    secret = "hf_" + "a" * 34
    assert secret not in refusal(written(tmp_path, f"hub_token: {secret}\n"))


@pytest.mark.parametrize(
    ("lines", "about"),
    [
        ("random_resized_crop_scale: [0.9, 0.5]", "random_resized_crop_scale: must be [smallest"),
        ("random_resized_crop_scale: []", "random_resized_crop_scale: must be [smallest"),
        ("random_resized_crop_ratio: [1, 1, 1]", "random_resized_crop_ratio: must be [smallest"),
        ("deep_pixels: [99, 1]", "deep_pixels: must be [low, high]"),
        ("deep_pixels: [50]", "deep_pixels: must be [low, high]"),
        ("push_to_hub: true", "hub_model_id"),
        ("dataloader_persistent_workers: true", "dataloader_num_workers above 0"),
        ("data_path: device\ndataloader_num_workers: 2", "dataloader_num_workers"),
        ("unfreeze_groups: [norms]", "only with `method: partial`"),
        ("method: partial\nunfreeze_blocks: 0", "which is `method: linear`"),
        (
            "method: partial\nunfreeze_groups: [norms]\nfreeze_groups: [norms]",
            "norms is also in unfreeze_groups",
        ),
        ("method: linear\nmuon: true", "muon: does nothing with `method: linear`"),
        ("method: linear\ndrop_path_rate: 0.1", "drop_path_rate: does nothing"),
        ("method: lora\nfreeze_groups: [norms]", "freezes the whole backbone already"),
        ("freeze_groups: [head]", "a new classifier must train"),
        ("head_epochs: 1\nunfreeze_every: 1", "leave head_epochs out"),
        ("head_epochs: 3", "only the classifier would train in num_train_epochs: 3"),
        ("temperature_scaling: true\nvalidation_fraction: 0", "raise validation_fraction"),
        (
            "early_stopping_patience: 2\neval_strategy: steps",
            "the same eval_strategy and save_strategy",
        ),
        ("early_stopping_patience: 2\nvalidation_fraction: 0", "validation_fraction above 0"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path, lines, about):
    assert about in refusal(written(tmp_path, lines + "\n"))


def test_a_key_that_stands_twice_names_the_line(tmp_path):
    path = written(tmp_path, "seed: 1\nlora_r: 8\nseed: 2\n")
    message = refusal(path)
    assert message.startswith(f"{path}: line 3: ") and "key `seed` stands twice" in message


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "a: b: c",
        "\tseed: 1",
        "just words",
        "- seed",
        "42",
        "[]",
        "false",
        "seed: !!python/name:os.system ''",
        "? [1]\n: 2",
        "a: \x01",
    ],
    ids=repr,
)
def test_what_is_no_recipe_at_all(tmp_path, text):
    path = written(tmp_path, text)
    assert refusal(path).startswith(path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"seed: 1 # \xff\xfe\n")
    assert "not UTF-8 text" in refusal(str(tmp_path / "mine.yaml"))


def test_an_override_that_is_no_yaml_is_refused():
    assert refusal("quickstart", model_config="{a: [1").startswith(
        "command line: model_config: must be a mapping"
    )
    assert refusal("quickstart", random_resized_crop_ratio="[1, 2").startswith(
        "command line: random_resized_crop_ratio: must be a list"
    )


# ---- what is read ----


def test_what_a_file_leaves_out_is_the_default(tmp_path):
    recipe = load_recipe(written(tmp_path, DEFAULTS))
    assert recipe == Recipe(name="mine", training=TRAINING_DEFAULTS | {"output_dir": "runs/mine"})


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n", "null\n"])
def test_an_empty_file_is_refused(tmp_path, text):
    path = written(tmp_path, text)
    assert refusal(path) == (
        f"{path}: empty; write at least one `key: value` line, such as `seed: 0`"
    )


def test_yaml_1_1_text_that_is_meant_as_a_number(tmp_path):
    # YAML 1.1, which PyYAML reads, takes 1e-3 for text: it has no dot.
    recipe = load_recipe(
        written(tmp_path, "learning_rate: 1e-3\nrandom_resized_crop_ratio: [1e-5, 2]\n")
    )
    assert recipe.training["learning_rate"] == 1e-3
    assert recipe.random_resized_crop_ratio == [1e-5, 2.0]


def test_overrides_win_and_are_remembered(tmp_path):
    path = written(tmp_path, "lora_r: 8\nlearning_rate: 0.1\n")
    recipe = load_recipe(path, {"lora_r": "4", "output_dir": "elsewhere/run"})
    assert (recipe.lora_r, recipe.training["learning_rate"]) == (4, 0.1)
    assert recipe.output_dir == Path("elsewhere/run")
    assert recipe.overrides == {"lora_r": "4", "output_dir": "elsewhere/run"}


SAMPLES = {  # values of keys, as typed and as meant
    "model_name_or_path": ("user/model", "user/model"),
    "model_revision": ("null", "null"),  # a branch may be called so
    "from_scratch": ("true", True),
    "model_config": ("{model_type: vit, hidden_size: 8}", {"model_type": "vit", "hidden_size": 8}),
    "image_size": ("96", 96),
    "center_crop": ("yes", True),
    "head_init": ("pretrained", "pretrained"),
    "dataset_name": ("sample", "sample"),
    "dataset_revision": ("v1", "v1"),
    "dataset_config_name": ("plain_text", "plain_text"),
    "image_column_name": ("img", "img"),
    "label_column_name": ("label", "label"),
    "validation_fraction": ("0", 0.0),
    "test_fraction": ("1e-1", 0.1),
    "train_samples_per_class": ("5", 5),
    "max_train_samples": ("7", 7),
    "max_eval_samples": ("7", 7),
    "on_bad_image": ("skip", "skip"),
    "data_path": ("table", "table"),
    "deep_pixels": ("[1.0, 99.0]", [1.0, 99.0]),
    "drop_test_duplicates": ("true", True),
    "exclude": ("audit.parquet", "audit.parquet"),
    "random_resized_crop_scale": ("null", None),
    "random_resized_crop_ratio": ("1,1", [1.0, 1.0]),
    "horizontal_flip": ("0", 0.0),
    "objective": ("classification", "classification"),
    "consistency_weight": ("12", 12.0),
    "method": ("partial", "partial"),
    "unfreeze_blocks": ("1", 1),
    "lora_r": ("8", 8),
    "lora_alpha": ("32", 32.0),
    "lora_dropout": ("0.1", 0.1),
    "lora_target_modules": ("q_proj,v_proj", ["q_proj", "v_proj"]),
    "head_learning_rate": ("1e-2", 0.01),
    "layer_decay": ("0.75", 0.75),
    "feature_views": ("3", 3),
    "channels_last": ("true", True),
    "license": ("apache-2.0", "apache-2.0"),
    "auto_augment": ("trivialaugment", "trivialaugment"),
    "randaugment_num_ops": ("1", 1),
    "randaugment_magnitude": ("5", 5),
    "random_erasing": ("0.25", 0.25),
    "mixup_alpha": ("0.8", 0.8),
    "cutmix_alpha": ("1", 1.0),
    "dropout": ("0.1", 0.1),
    "drop_path_rate": ("0.1", 0.1),
    "unfreeze_groups": ("norms,biases", ["norms", "biases"]),
    "freeze_groups": ("[embeddings]", ["embeddings"]),
    "head_epochs": ("1", 1.0),
    "unfreeze_every": ("0.5", 0.5),
    "scale_learning_rate": ("linear", "linear"),
    "muon": ("true", True),
    "ema_decay": ("0.99", 0.99),
    "early_stopping_patience": ("3", 3),
    "early_stopping_threshold": ("0.001", 0.001),
    "temperature_scaling": ("true", True),
    "tta": ("flip", "flip"),
    "image_size_schedule": ("[[0, 32], [2, 64]]", [[0, 32], [2, 64]]),
}


def test_every_own_key_has_help():
    text = keys_help()
    for key, field in project_fields().items():
        assert field.metadata["help"].strip() == field.metadata["help"] != ""
        assert f"  {key} (" in text


@pytest.mark.parametrize("key", SAMPLES)
def test_a_key_can_be_typed_in_both_ways(key, tmp_path):
    typed, meant = SAMPLES[key]
    needed = {
        "unfreeze_groups": "method: partial\n",
        "consistency_weight": "auto_augment: augmix\n",
    }
    path = written(tmp_path, needed.get(key, DEFAULTS))
    for words in ([f"--{key}", typed], [f"--{key.replace('_', '-')}={typed}"]):
        recipe = load_recipe(path, parse_overrides(words))
        assert getattr(recipe, key) == meant and type(getattr(recipe, key)) is type(meant)


@pytest.mark.parametrize(
    "key",
    [k for k in project_fields() if type(None) in typing.get_args(OWN_HINTS[k])]
    + ["bf16", "dataloader_num_workers"],
)
def test_every_key_that_may_be_null_can_be_typed_so(key, tmp_path):
    recipe = load_recipe(written(tmp_path, DEFAULTS), {key: "null"})
    assert recipe.to_dict()[key] is None


def test_our_training_keys_are_real_and_their_defaults_fit():
    hints = training_types()
    assert TRAINING_DEFAULTS.keys() <= hints.keys() and TRAINING_TYPES.keys() <= hints.keys()
    assert hints.keys() | project_fields().keys() >= PATHS
    assert not (REFUSED.keys() & TRAINING_DEFAULTS.keys()) and REFUSED.keys() <= hints.keys()
    for key, value in TRAINING_DEFAULTS.items():
        assert key == "output_dir" or validate(value, hints[key], key) == value


# ---- the resolved recipe says the same again ----


def values_of(hint):
    """Valid values of a key, as YAML would hold them."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is list:
        return st.lists(values_of(arguments[0]), min_size=1, max_size=3)
    if origin is dict:
        scalar = (
            st.integers(-9, 9)
            | st.booleans()
            | st.text(max_size=4)
            | st.floats(allow_nan=False)
            | st.none()
        )
        names = st.text("abc_", min_size=1, max_size=6)
        return st.dictionaries(names, scalar | st.lists(scalar, max_size=2), max_size=3)
    if hint is str:
        characters = st.characters(categories=("L", "N", "P", "S", "Zs"))
        return st.text(characters, min_size=1, max_size=12).filter(lambda t: t[0] != "~")
    # numbers within their bounds, truth values, choices, null
    return st.from_type(hint).filter(lambda v: not isinstance(v, float) or math.isfinite(v))


def fit_adaptation(values):
    """Leave out what does not go together."""
    method = values.get("method", "full")
    groups = (
        set(values.get("freeze_groups") or []) - {"head"} - set(values.get("unfreeze_groups") or [])
    )
    values["freeze_groups"] = sorted(groups) or None
    if method != "partial":
        values.pop("unfreeze_groups", None)
    elif values.get("unfreeze_blocks") == 0:
        values["unfreeze_groups"], values["freeze_groups"] = ["norms"], None
    if method == "lora":
        values["freeze_groups"] = None
    if method == "linear":
        for name in NOTHING_IN_LINEAR:
            values.pop(name, None)
    if values.get("head_epochs"):
        values["head_epochs"], values["unfreeze_every"] = 1.0, 0.0
    elif values.get("unfreeze_every"):
        values["unfreeze_every"] = 0.5


FITTED = ("output_dir", "dataloader_multiprocessing_context")  # not at random
NO_WORKERS = ("dataloader_num_workers", "device")


@st.composite
def recipes(draw):
    """Key -> value of a random valid recipe."""
    values = {}
    for name in project_fields():
        if draw(st.booleans()):
            values[name] = draw(values_of(OWN_HINTS[name]))
    for name in ("random_resized_crop_scale", "random_resized_crop_ratio"):
        if values.get(name) is not None:
            values[name] = sorted((values[name] * 2)[:2])
    if values.get("label_map") is not None:
        values["label_map"] = {"new": ["a", 1], 2: ["b"]}
    for name in ("tasks", "task_weighting"):
        values.pop(name, None)
    if draw(st.booleans()):
        several = [{"name": "first"}, {"name": "second", "weight": 0.5, "label_map": None}]
        values |= {"objective": "multi_task", "tasks": several, "task_weighting": "learned"}
    elif values.get("unlabelled_dataset") is not None:
        values["objective"] = "semi_supervised"
    elif values.get("teacher") is not None:
        values["objective"] = "distillation"
    for name, objective in (("teacher", "distillation"), ("unlabelled_dataset", "semi_supervised")):
        if values.get("objective") != objective:
            values.pop(name, None)
    if values.get("group_pattern") is not None:
        values |= {"group_pattern": r"(patient\d+)_", "group_column_name": None}
    if values.get("objective", "classification") not in SINGLE_LABEL:
        for name in NEED_SINGLE_LABEL:
            values.pop(name, None)
    if (
        values.get("class_weights") == "balanced"
        or values.get("method") == "linear"
        or values.get("objective") == "semi_supervised"
    ):
        values["sampler"] = "shuffled"
    if values.get("objective") == "distillation" and values.get("sampler") == "balanced":
        values["teacher_views"] = "plain"
    if isinstance(values.get("deep_pixels"), list):
        values["deep_pixels"] = [0.5, 99.5]
    views = {
        "linear": values.get("feature_views") or 1,
        "partial": values.get("feature_views"),
    }.get(values.get("method"))
    anew = ["mixup_alpha", "cutmix_alpha", "image_size_schedule"]
    for name in (
        [] if views is None else anew if views > 1 else [*anew, "auto_augment", "random_erasing"]
    ):
        values.pop(name, None)
    if values.get("consistency_weight"):
        if views is None and values.get("objective", "classification") == "classification":
            values |= {"auto_augment": "augmix", "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
        else:
            values["consistency_weight"] = 0.0
    if values.get("image_size_schedule") is not None:
        values["image_size_schedule"] = [
            [0, draw(st.integers(8, 4096))],
            [2, values.get("image_size") or 64],
        ]
    fit_adaptation(values)
    for name, hint in TRAINING_TYPES.items():
        if name in FITTED or (name, values.get("data_path")) == NO_WORKERS:
            continue
        if draw(st.booleans()):
            values[name] = draw(values_of(hint))
    more = {
        "lr_scheduler_type": st.sampled_from(
            ["linear", "cosine", "constant", "cosine_with_min_lr"]
        ),
        "lr_scheduler_kwargs": st.just({"min_lr": 1e-6}),
        "optim": st.sampled_from(["sgd", "adamw_torch", "adamw_torch_fused"]),
        "optim_args": st.just("momentum=0.9"),
        "eval_strategy": st.sampled_from(["no", "steps", "epoch"]),
        "report_to": st.sampled_from(["none", "all", "tensorboard", ["tensorboard", "wandb"]]),
        "bf16": st.sampled_from([None, True, False]),
        "gradient_checkpointing": st.booleans(),
        "max_steps": st.integers(-1, 10**6),
        "hub_model_id": st.sampled_from([None, "user/name"]),
        "output_dir": st.sampled_from(["runs/a", "a b/ü"]),
    }
    if (
        values.get("image_size_schedule")
        or values.get("head_epochs")
        or values.get("unfreeze_every")
    ):
        values["num_train_epochs"] = 3.0
    values |= {k: draw(v) for k, v in more.items() if draw(st.booleans())}
    watching = (
        "target_specificity",
        "temperature_scaling",
        "early_stopping_patience",
        "monitor_features",
    )
    if any(values.get(name) for name in watching):
        values |= {"validation_fraction": 0.1, "eval_strategy": "epoch", "save_strategy": "epoch"}
    return values


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(values=recipes())
def test_resolved_recipe_loads_to_an_equal_one(tmp_path, values):
    path = written(tmp_path, write_yaml(values))
    first = load_recipe(path)
    for name, value in values.items():
        held = first.to_dict()[name]
        assert held == value or held == [value], name
    resolved = first.to_yaml()
    second = load_recipe(written(tmp_path, resolved))
    assert second == first
    assert yaml.safe_load(second.to_yaml()) == yaml.safe_load(resolved)
    # and the same keys, typed as text, say the same
    typed = {
        k: v if isinstance(v, str) else yaml.safe_dump(v, default_flow_style=True)
        for k, v in values.items()
    }
    typed = {k: v.split("\n...")[0] for k, v in typed.items()}
    third = load_recipe(written(tmp_path, DEFAULTS), typed)
    assert third == first


def test_resolved_recipe_has_every_key_once_in_blocks():
    text = load_recipe("quickstart").to_yaml()
    titles = re.findall(r"^# (\w+)$", text, re.M)
    assert titles == [*BLOCKS, "Training", "Hub"]
    keys = re.findall(r"^(\w+):", text, re.M)
    assert sorted(keys) == sorted(
        {*project_fields(), *TRAINING_DEFAULTS, "save_strategy", "greater_is_better"} & set(keys)
    )
    assert {*project_fields(), *TRAINING_DEFAULTS} <= set(keys)
    assert all(math.isfinite(v) for v in yaml.safe_load(text).values() if isinstance(v, float))


# ---- how a recipe is named ----


def test_find_by_name_path_and_run_folder(tmp_path, monkeypatch):
    assert (
        find_recipe("quickstart")
        == find_recipe("quickstart.yaml")
        == packaged("recipes") / "quickstart.yaml"
    )
    assert find_recipe("vit_huge_14/lora") == packaged("recipes") / "vit_huge_14" / "lora.yaml"
    path = written(tmp_path, "seed: 3\n")
    assert find_recipe(path) == Path(path)
    run = tmp_path / "runs" / "first"
    run.mkdir(parents=True)
    resolved = written(run, load_recipe(path).to_yaml(), "recipe.yaml")
    assert find_recipe(str(run)) == Path(resolved)
    assert load_recipe(str(run)).seed == 3 and load_recipe(str(run)).name == "first"
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "seed: 5\n", "quickstart.yaml")
    assert (
        load_recipe("quickstart.yaml").seed == 5
    )  # a file that is there comes before a packaged name


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("quikstart", "quickstart"),
        ("vit_huge_14/lorra", "vit_huge_14/lora"),
        ("vit_base_16", "vit_base_16/full"),
    ],
)
def test_unknown_recipe_names_the_nearest(name, near):
    message = refusal(name)
    assert (
        message.startswith(f"{name}: no such file and no packaged recipe; did you mean `")
        and "recipes list" in message
    )
    assert near.split("/")[0] in message


def test_a_packaged_name_is_no_way_out_of_the_folder():
    assert "no packaged recipe" in refusal("../pyproject")


def test_recipe_names_are_files_and_know_themselves():
    for name in recipe_names():
        assert load_recipe(name).name == name
        assert load_recipe(str(find_recipe(name))).name == name


def test_a_recipe_can_be_copied_out_and_still_be_itself(tmp_path):
    path = written(tmp_path, find_recipe("vit_base_16/lora").read_text(), "mine.yaml")
    mine, packaged_one = load_recipe(path), load_recipe("vit_base_16/lora")
    assert mine.name == "mine" and mine.output_dir == Path("runs/mine")
    same = dataclasses.replace(
        packaged_one, name="mine", training=packaged_one.training | {"output_dir": "runs/mine"}
    )
    assert mine == same


# ---- the README's table ----


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "keys_table.py"))


def test_table_has_every_key_once(script):
    rows = [
        line.split(" | ")
        for line in script["table"]().splitlines()
        if line.startswith("| `") or " | `" in line
    ]
    assert [row[1].strip("`") for row in rows] == [*project_fields(), *TRAINING_DEFAULTS]
    assert all(row[3].removesuffix(" |").strip() for row in rows)


def test_table_is_written_between_the_marks_and_a_stale_one_is_noticed(script, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- keys -->\nold\n<!-- /keys -->\nafter\n", encoding="utf-8")
    assert not script["is_fresh"](readme)
    script["main"](["--write", str(readme)])
    text = readme.read_text(encoding="utf-8")
    assert (
        text.startswith("before\n<!-- keys -->\n")
        and text.endswith("<!-- /keys -->\nafter\n")
        and "\nold\n" not in text
    )
    assert script["is_fresh"](readme) and script["table"]() in text
    readme.write_text(text.replace("lora_r", "lora_rank"), encoding="utf-8")
    assert not script["is_fresh"](readme)


def test_table_needs_its_marks(script, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no marks\n")
    with pytest.raises(UserError, match="<!-- keys -->"):
        script["main"](["--write", str(readme)])
    assert readme.read_text() == "no marks\n"
