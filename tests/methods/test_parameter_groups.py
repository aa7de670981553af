"""Each parameter that trains is in one group, with the right learning rate and weight decay."""

import pytest
from helpers import tiny_models
from helpers.adapted_models import leaves_in_order, load_model, prepare
from helpers.runs import METHODS, assert_same_weights

from hf_cifar.methods.parameter_groups import group_table, learning_rate_scale, parameter_groups
from hf_cifar.models.structure import blocks, head
from hf_cifar.recipe.fields import MethodKeys


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_parameter_that_trains_is_in_one_group_with_the_right_rate(family, method, tiny):
    rate, weight_decay, head_rate, layer_decay = 1e-3, 0.05, 7e-3, 0.5
    model = prepare(load_model(tiny(family)), method, lora_target_modules="all")
    groups = parameter_groups(
        model, rate, weight_decay, head_learning_rate=head_rate, layer_decay=layer_decay
    )
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(group_of) == len(trained)
    names = {group["name"] for group in groups}
    assert group_table(groups).count("\n") == len(groups) == len(names)

    plain = load_model(tiny(family))  # block names without those of peft's wrappers
    in_block = [f"{name}." for name, _ in blocks(plain)]
    depth, classifier = len(in_block), head(plain)[0] + "."
    for full_name, parameter in trained:
        group, name = group_of[id(parameter)], full_name.removeprefix("base_model.model.")
        positional = any(word in name for word in ("position", "pos_embed", "token"))
        decays = parameter.ndim >= 2 and not positional
        assert group["weight_decay"] == (weight_decay if decays else 0.0), name
        block = next((i for i, prefix in enumerate(in_block) if name.startswith(prefix)), None)
        if name.startswith(classifier):
            assert group["lr"] == head_rate
        elif block is not None:
            assert group["lr"] == pytest.approx(rate * layer_decay ** (depth - block)), name
        else:
            rates = [rate * layer_decay**k for k in range(depth + 2)]
            assert any(group["lr"] == pytest.approx(r) for r in rates), name


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_rates_never_fall_on_the_way_to_the_head(family, tiny):
    """In the order of a forward pass: what stands between blocks takes part in the decay, too."""
    model = load_model(tiny(family))
    groups = parameter_groups(model, 1.0, 0.0, layer_decay=0.5)
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    rates = [
        rate_of[id(parameter)]
        for name in leaves_in_order(model)
        for parameter in model.get_submodule(name).parameters(recurse=False)
    ]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0 and rates[0] == 0.5 ** (tiny_models.BLOCKS[family] + 1)


def test_without_layer_decay_there_is_one_rate_and_the_heads(tiny):
    groups = parameter_groups(load_model(tiny("vit")), 1e-3, 0.1)
    assert {group["lr"] for group in groups} == {1e-3}
    groups = parameter_groups(load_model(tiny("vit")), 1e-3, 0.1, head_learning_rate=1e-2)
    rates = {("head" in group["name"], group["lr"]) for group in groups}
    assert rates == {(True, 1e-2), (False, 1e-3)}


@pytest.mark.parametrize(
    ("keys", "scale"),
    [
        ({}, 1),
        ({"scale_learning_rate": "linear"}, 4),
        ({"scale_learning_rate": "sqrt"}, 2),
    ],
)
def test_the_scale_of_rates_for_1024_images(keys, scale):
    assert learning_rate_scale(MethodKeys(**keys), 1024) == scale


def test_rates_scale_with_the_batch_of_a_run(tiny, train, caplog):
    keys = {
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    with caplog.at_level("INFO", "hf_cifar"):
        run = train("run", tiny("vit"), scale_learning_rate="linear", **keys)
    assert "0.0625 times the recipe's: 16 images an update" in caplog.text
    assert_same_weights(run, train("same", tiny("vit"), learning_rate=0.005 / 16, **keys))
