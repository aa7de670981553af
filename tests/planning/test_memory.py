"""`plan` works out what a real step holds: weights, gradients, optimizer state, and what autograd
keeps.
"""

import dataclasses
import shlex

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from helpers import tiny_models
from helpers.runs import write_recipe
from transformers import Trainer

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.methods.parameter_groups import parameter_groups
from hf_cifar.methods.table import METHODS
from hf_cifar.objectives.classification import Classification
from hf_cifar.planning import memory
from hf_cifar.planning.model_sizes import model_sizes
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import packaged
from hf_cifar.training.arguments import training_arguments


@pytest.fixture
def make_recipe(tmp_path, tiny):
    """make_recipe(family, key=value, ...): a recipe of a tiny model, in tmp_path/recipe.yaml."""

    def make(family="vit", **keys):
        output = str(tmp_path / "run")
        path = write_recipe(tmp_path / "recipe.yaml", tiny(family), output_dir=output, **keys)
        return load_recipe(str(path))

    return make


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def real_step(recipe, family, batch=4):
    """Return the bytes of weights, gradients, optimizer state, and what autograd keeps, in a step
    on real tensors.
    """
    model = METHODS[recipe.method](recipe).prepare(tiny_models.build(family)).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor):
        if (storage := tensor.untyped_storage().data_ptr()) not in weights:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(pixel_values=torch.randn(batch, 3, 32, 32)).logits.float().sum()
    loss.backward()
    arguments = training_arguments(recipe, Classification.checkpoint_metrics)
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    groups = parameter_groups(model, 1e-3, 0.0)
    optimizer = kind([{k: v for k, v in g.items() if k != "name"} for g in groups], **kwargs)
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    state = [value for value in values if isinstance(value, torch.Tensor) and value.ndim]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return bytes_of(model.parameters()), bytes_of(gradients), bytes_of(state), activations


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("method", ["full", "partial", "lora"])
@pytest.mark.parametrize("family", ["vit", "resnet", "swin"])
def test_the_plan_is_what_a_step_holds(family, method, optim, make_recipe):
    keys = {"optim_args": "momentum=0.9"} if optim == "sgd" else {}
    keys |= {"method": method, "optim": optim, "lora_target_modules": "all"}
    recipe = make_recipe(family, **keys)
    sizes = model_sizes(recipe, checkpointing=False, bf16=False)
    weights, gradients, state, activations = real_step(recipe, family)
    assert (sizes.weights, sizes.gradients, sizes.optimizer) == (weights, gradients, state)
    of_four_images = real_step(recipe, family, 8)[3] - activations
    assert sizes.image == pytest.approx(of_four_images / 4, rel=0.02)


def test_checkpointing_keeps_less_and_bf16_copies_weights(make_recipe):
    recipe = make_recipe()
    plain, less = (model_sizes(recipe, checkpointing=c, bf16=False) for c in (False, True))
    assert less.image < plain.image / 2 and plain.copies == 0
    half = model_sizes(recipe, checkpointing=False, bf16=True)
    named = tiny_models.build("vit").named_parameters()
    matrices = sum(p.numel() for n, p in named if p.ndim >= 2 and "embeddings" not in n)
    assert half.copies >= 2 * 0.9 * matrices and half.image < plain.image


def test_shards_are_shares(make_recipe):
    recipe = make_recipe()
    options, sizes = memory.launch_options(recipe, 4, False)
    by_way = {(option.way, option.checkpointing): option for option in options}
    ways = ("single", "DDP", "FSDP2", "ZeRO-3")
    assert set(by_way) == {(way, c) for way in ways for c in (False, True)}
    sharded, checkpointed = by_way["FSDP2", False], by_way["single", True]
    assert sharded.optimizer == sizes.optimizer / 4 == by_way["DDP", False].optimizer / 4
    assert sharded.parameters == sizes.weights / 4 + 8 * sizes.largest_block
    less = model_sizes(recipe, checkpointing=True, bf16=False)
    assert checkpointed.activations > less.image * 8
    assert sharded.gradients == sizes.gradients / 4
    linear, _ = memory.launch_options(make_recipe(method="linear"), 4, False)
    assert {option.way for option in linear} == {"single", "DDP"}


def test_accumulation_keeps_whole_gradients_under_fsdp(make_recipe):
    recipe = make_recipe(gradient_accumulation_steps=2)
    options, sizes = memory.launch_options(recipe, 4, True)
    gradients = {o.way: o.gradients for o in options if not o.checkpointing}
    assert gradients["FSDP2"] == sizes.gradients / 4 + 2 * sizes.trainable
    assert gradients["ZeRO-3"] == sizes.gradients / 4


@pytest.mark.slow
def test_vit_huge_is_planned_without_its_weights(capsys):
    words = ["--from_scratch", "true", "--dataset_name", "sample"]
    assert main.run(["plan", "vit_huge_14/lora", *words, "--gpu-memory", "8"]) == 0
    output = capsys.readouterr().out
    assert "636.0 M parameters, 5.26 M train" in output
    # The recipe has gradient checkpointing itself.
    line = "hf-cifar train vit_huge_14/lora --from_scratch true --dataset_name sample"
    assert output.strip().splitlines()[-1] == line


def test_the_launch_lines_can_be_typed(make_recipe, tmp_path):
    make_recipe()
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), {"seed": "3"})
    options, _ = memory.launch_options(recipe, 8, True)
    for option in options:
        words = shlex.split(memory.launch_line(recipe, option, "mine/recipe.yaml", 8))
        assert words[0] == ("hf-cifar" if option.way == "single" else "accelerate")
        assert ("--gradient_checkpointing" in words) == option.checkpointing
        train = words[words.index("train") + 1 :]
        assert train[:3] == ["mine/recipe.yaml", "--seed", "3"]
        if option.way != "single":
            config_file = words[words.index("--config_file") + 1]
            config = load_config_from_file(str(packaged("recipes") / config_file))
            args = launch_command_parser().parse_args(words[2:])
            assert args.num_processes == config.num_processes == 8
            assert args.training_script == "hf_cifar"


@pytest.mark.parametrize(
    "words", [["--gpu-memory", "0"], ["--mfu", "2"], ["--dataset_name", "pictures"]]
)
def test_bad_input_is_one_line(words, make_recipe, tmp_path, capsys):
    make_recipe()
    assert main.run(["plan", str(tmp_path / "recipe.yaml"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("hf-cifar: plan: ") and "\n" not in error


def test_work_counts_passes(make_recipe):
    recipe = make_recipe(validation_fraction=0.1, max_train_samples=None, num_train_epochs=2)
    sizes = model_sizes(recipe, checkpointing=False, bf16=False)
    assert memory.work(recipe, sizes, False, 1, None) == (1800, 3.0 * sizes.flops * 1800, 2.0)
    assert memory.work(recipe, sizes, True, 4, 1000) == (900, 4.0 * sizes.flops * 900, 2.0)
    steps = recipe.training | {"max_steps": 90, "gradient_accumulation_steps": 5}
    by_steps = dataclasses.replace(recipe, training=steps)
    assert memory.work(by_steps, sizes, False, 4, None)[2] == 90 * 8 * 5 * 4 / 1800
    elsewhere = dataclasses.replace(recipe, dataset_name="elsewhere")
    with pytest.raises(UserError, match="give --images N"):
        memory.work(elsewhere, sizes, False, 1, None)
