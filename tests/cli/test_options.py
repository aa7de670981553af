"""Recipe keys and numbers on the command line."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cifar.cli.options import (
    keys_help,
    parse_overrides,
    positive_integer,
    positive_number,
    positive_share,
)
from hf_cifar.recipe.fields import TRAINING_DEFAULTS, project_fields
from hf_cifar.recipe.load import load_recipe


@given(
    st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True), st.text(max_size=12))
)
def test_overrides_come_back_as_they_were_typed(keys):
    assert parse_overrides([f"--{k.replace('_', '-')}={v}" for k, v in keys.items()]) == keys
    apart = {k: v for k, v in keys.items() if not v.startswith("--")}
    assert parse_overrides([w for k, v in apart.items() for w in (f"--{k}", v)]) == apart


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["--from_scratch"], {"from_scratch": "true"}),
        (["--from_scratch", "--seed", "3"], {"from_scratch": "true", "seed": "3"}),
        (["--model_config", "{model_type: vit}"], {"model_config": "{model_type: vit}"}),
        (["--learning_rate", "-1"], {"learning_rate": "-1"}),
        (["--dataset-name=a=b"], {"dataset_name": "a=b"}),
        (["--seed", "1", "--seed", "2"], {"seed": "2"}),
    ],
)
def test_ways_to_write_an_override(words, keys):
    assert parse_overrides(words) == keys


def test_an_override_is_read_as_its_type(recipe):
    words = ["--random_resized_crop_ratio", "1e-3,1e-2", "--random_resized_crop_scale", "null"]
    words += ["--horizontal_flip", "0", "--tf32=false"]
    loaded = load_recipe(recipe(), parse_overrides(words))
    assert loaded.random_resized_crop_ratio == [0.001, 0.01]
    assert loaded.random_resized_crop_scale is None
    assert loaded.horizontal_flip == 0.0 and loaded.training["tf32"] is False


def test_help_lists_every_key():
    lines = keys_help().splitlines()
    for name in project_fields():
        assert any(line.startswith(f"  {name} (") for line in lines), name
    for name, value in TRAINING_DEFAULTS.items():
        assert value is None or f"{name} ({value})" in lines[-1]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (positive_integer, {"1": 1, "128": 128}, ["0", "-1", "1.5", "", "x", "9" * 5000, "²"]),
        (positive_number, {"1e-6": 1e-6, "80": 80.0}, ["0", "-1", "nan", "inf", "x", ""]),
        (positive_share, {"1": 1.0, "0.4": 0.4}, ["0", "1.01", "nan", "x"]),
    ],
)
def test_numbers(kind, good, bad):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            kind(text)
        assert len(str(caught.value)) < 150
