"""What `plan` works out is what a real step holds: weights, gradients, optimizer state, and what
autograd keeps.
"""

import dataclasses
import shlex

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from helpers import tiny_models
from test_run import BASE

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.methods.parameter_groups import parameter_groups
from hf_cifar.methods.trainable import adapt
from hf_cifar.planning import memory
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import packaged
from hf_cifar.training.arguments import training_arguments


def recipe_of(folder, model, **keys):
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            BASE | {"model_name_or_path": str(model), "output_dir": str(folder / "run")} | keys
        )
    )
    return load_recipe(str(path))


def real_step(recipe, family, batch=4):
    """(weights, gradients, optimizer state, kept by autograd) in bytes of a step on real tensors."""
    from transformers import Trainer

    model = adapt(tiny_models.build(family), recipe, "base").train()
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        if (key := tensor.untyped_storage().data_ptr()) not in own:
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(pixel_values=torch.randn(batch, 3, 32, 32)).logits.float().sum()
    loss.backward()
    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(training_arguments(recipe), model)
    groups = [
        {k: v for k, v in g.items() if k != "name"}
        for g in parameter_groups(model, 1e-3, 0.0, None, 1.0)
    ]
    optimizer = kind(groups, **kwargs)
    optimizer.step()
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    state = [
        v
        for s in optimizer.state.values()
        for v in s.values()
        if isinstance(v, torch.Tensor) and v.ndim
    ]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    saved = sum(t.untyped_storage().nbytes() for t in kept.values())
    return size(model.parameters()), size(gradients), size(state), saved


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("method", ["full", "partial", "lora"])
@pytest.mark.parametrize("family", ["vit", "resnet", "swin"])
def test_what_is_worked_out_is_what_a_step_holds(family, method, optim, tiny, tmp_path):
    more = {"optim_args": "momentum=0.9"} if optim == "sgd" else {}
    recipe = recipe_of(
        tmp_path, tiny(family), method=method, optim=optim, lora_target_modules="all", **more
    )
    found = memory.sizes(recipe, checkpointing=False, bf16=False)
    weights, gradients, state, _ = real_step(recipe, family)
    assert (found.weights, found.gradients, found.optimizer) == (weights, gradients, state)
    kept = real_step(recipe, family, 8)[3] - real_step(recipe, family, 4)[3]
    assert found.image == pytest.approx(kept / 4, rel=0.02)


def test_checkpointing_keeps_less_and_bf16_copies_weights(tiny, tmp_path):
    recipe = recipe_of(tmp_path, tiny("vit"))
    plain, less = (memory.sizes(recipe, checkpointing=c, bf16=False) for c in (False, True))
    assert less.image < plain.image / 2 and plain.copies == 0
    half = memory.sizes(recipe, checkpointing=False, bf16=True)
    matrices = sum(
        p.numel()
        for n, p in tiny_models.build("vit").named_parameters()
        if p.ndim >= 2 and "embeddings" not in n
    )
    assert half.copies >= 2 * 0.9 * matrices and half.image < plain.image


def test_shards_are_shares(tiny, tmp_path):
    recipe = recipe_of(tmp_path, tiny("vit"))
    ways, s = memory.launch_options(recipe, 4, False)
    by = {(r.way, r.checkpointing): r for r in ways}
    assert set(by) == {(w, c) for w in ("single", "DDP", "FSDP2", "ZeRO-3") for c in (False, True)}
    assert by["FSDP2", False].optimizer == s.optimizer / 4 == by["DDP", False].optimizer / 4
    assert by["FSDP2", False].parameters == s.weights / 4 + 8 * s.largest_block
    assert (
        by["single", True].activations
        > memory.sizes(recipe, checkpointing=True, bf16=False).image * 8
    )
    assert by["FSDP2", False].gradients == s.gradients / 4
    recipe.training["gradient_accumulation_steps"] = 2
    by = {(r.way, r.checkpointing): r for r in memory.launch_options(recipe, 4, True)[0]}
    assert by["FSDP2", False].gradients == s.gradients / 4 + 2 * s.trainable
    assert by["ZeRO-3", False].gradients == s.gradients / 4
    assert {
        r.way
        for r in memory.launch_options(recipe_of(tmp_path, tiny("vit"), method="linear"), 4, False)[
            0
        ]
    } == {"single", "DDP"}


@pytest.mark.slow
def test_vit_huge_is_planned_without_its_weights(capsys):
    words = ["--from_scratch", "true", "--dataset_name", "sample"]
    assert main.run(["plan", "vit_huge_14/lora", *words, "--gpu-memory", "8"]) == 0
    said = capsys.readouterr().out
    assert "636.0 M parameters, 5.26 M train" in said
    # which has checkpointing
    line = "hf-cifar train vit_huge_14/lora --from_scratch true --dataset_name sample"
    assert said.strip().splitlines()[-1] == line


def test_the_launch_lines_are_ones(tiny, tmp_path):
    recipe_of(tmp_path, tiny("vit"))
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), {"seed": "3"})
    ways, _ = memory.launch_options(recipe, 8, True)
    for row in ways:
        words = shlex.split(memory.launch_line(recipe, row, "mine/recipe.yaml", 8))
        assert words[0] == ("hf-cifar" if row.way == "single" else "accelerate")
        assert ("--gradient_checkpointing" in words) == row.checkpointing
        own = words[words.index("train") + 1 :]
        assert own[:3] == ["mine/recipe.yaml", "--seed", "3"]
        if row.way != "single":
            file = load_config_from_file(
                str(packaged("recipes") / words[words.index("--config_file") + 1])
            )
            args = launch_command_parser().parse_args(words[2:])
            assert (
                args.num_processes == 8
                and args.training_script == "hf_cifar"
                and file.num_processes == 8
            )


@pytest.mark.parametrize(
    "words", [["--gpu-memory", "0"], ["--mfu", "2"], ["--dataset_name", "pictures"]]
)
def test_bad_input_is_one_line(words, tiny, tmp_path, capsys):
    recipe_of(tmp_path, tiny("vit"))
    assert main.run(["plan", str(tmp_path / "recipe.yaml"), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("hf-cifar: plan: ") and "\n" not in said


def test_work_counts_passes(tiny, tmp_path):
    recipe = recipe_of(
        tmp_path, tiny("vit"), validation_fraction=0.1, max_train_samples=None, num_train_epochs=2
    )
    s = memory.sizes(recipe, checkpointing=False, bf16=False)
    assert memory.work(recipe, s, False, 1, None) == (1800, 3.0 * s.flops * 1800, 2.0)
    assert memory.work(recipe, s, True, 4, 1000) == (900, 4.0 * s.flops * 900, 2.0)
    recipe.training |= {"max_steps": 90, "gradient_accumulation_steps": 5}
    assert memory.work(recipe, s, False, 4, None)[2] == 90 * 8 * 5 * 4 / 1800
    other = dataclasses.replace(recipe, dataset_name="elsewhere")
    with pytest.raises(UserError, match="say --images N"):
        memory.work(other, s, False, 1, None)
