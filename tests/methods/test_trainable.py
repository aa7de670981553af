"""What trains and what is frozen, for every method and family, by blocks and by groups."""

import pytest
import torch
from helpers import tiny_models
from helpers.adapted_models import (
    leaves_in_order,
    load_model,
    prepare,
    train_steps,
    trainable_names,
)
from helpers.runs import METHODS, saved_weights
from safetensors.torch import load_file
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.methods.trainable import parameters_from_block
from hf_cifar.models.structure import blocks, head


def own_parameters(model, module):
    """Return the names of the parameters that the module holds itself."""
    parameters = model.get_submodule(module).named_parameters(prefix=module, recurse=False)
    return {name for name, _ in parameters}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_what_trains_changes_and_nothing_else_does(family, method, tiny):
    model = load_model(tiny(family))
    classifier, _ = head(model)
    last = blocks(model)[-1][0]
    order = leaves_in_order(model)
    adapted = prepare(model, method)
    trained = trainable_names(adapted)

    if method == "full":
        assert trained == {name for name, _ in model.named_parameters()}
    elif method == "linear":
        assert trained == {f"{classifier}.weight", f"{classifier}.bias"}
    elif method == "partial":
        # Everything from where a forward pass enters the last block, and nothing before it.
        first = next(i for i, name in enumerate(order) if name.startswith(last + "."))
        below = [name for name in order[:first] if not name.startswith(last)]
        assert set().union(*(own_parameters(model, name) for name in order[first:])) <= trained
        assert not set().union(*(own_parameters(model, name) for name in below)) & trained
    else:
        assert all("lora_" in name or "modules_to_save" in name for name in trained)
        assert f"base_model.model.{classifier}.modules_to_save.default.weight" in trained

    if method == "linear":
        return  # its head is solved for on features, in evaluation mode
    start = {name: p.clone() for name, p in adapted.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in adapted.named_buffers()}
    train_steps(adapted)
    moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, start[n])}
    assert moved <= trained
    assert not [name for name in trained - moved if "mask_token" not in name]
    changed = [n for n, buffer in adapted.named_buffers() if not torch.equal(buffer, buffers[n])]
    if method == "lora":
        assert not changed  # batch norms keep the pretrained statistics
    if method == "partial":
        modules = tuple(name.rsplit(".", 1)[0] for name in trained)
        assert all(name.startswith(modules) for name in changed)
    if method == "full" and family in ("resnet", "efficientnet", "timm"):
        assert any("running_mean" in name for name in changed)


@pytest.mark.parametrize("family", ["vit", "swin", "efficientnet"])
def test_partial_of_more_blocks_trains_more(family, tiny):
    counts = []
    for number in (1, 2, tiny_models.BLOCKS[family]):
        model = prepare(load_model(tiny(family)), "partial", unfreeze_blocks=number)
        names = [name for name, _ in blocks(model)]
        whole = [
            n for n, block in blocks(model) if all(p.requires_grad for p in block.parameters())
        ]
        assert whole == names[-number:]
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert counts == sorted(set(counts))


def test_more_blocks_than_there_are(tiny):
    with pytest.raises(UserError, match="unfreeze_blocks: 9 is more than the 3 blocks"):
        prepare(load_model(tiny("vit")), "partial", unfreeze_blocks=9)


# ---- groups ----


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_groups_hold_what_their_names_say(family):
    model = tiny_models.build(family)
    kinds = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    norms = {module for module in model.modules() if isinstance(module, kinds)}
    everything = {name for name, _ in model.named_parameters()}
    classifier = head(model)[0] + "."
    biases = {name for name in everything if name.endswith(".bias")}
    for group in ("norms", "biases", "embeddings"):
        frozen = everything - trainable_names(
            prepare(tiny_models.build(family), freeze_groups=[group])
        )
        assert frozen and not any(name.startswith(classifier) for name in frozen)
        if group == "norms":
            assert frozen == {
                n for n in everything if model.get_submodule(n.rpartition(".")[0]) in norms
            }
        if group == "biases":
            assert frozen <= biases
        if group == "embeddings":
            inside = tuple(f"{block}." for block, _ in blocks(model))
            assert not any(name.startswith(inside) for name in frozen)
    # BitFit (Ben Zaken et al. 2021) and the head.
    bitfit = prepare(model, "partial", unfreeze_blocks=0, unfreeze_groups=["biases"])
    head_names = {name for name in everything if name.startswith(classifier)}
    assert trainable_names(bitfit) == biases | head_names


def test_a_group_that_a_model_lacks_is_named():
    message = "freeze_groups: ResNetForImageClassification has no attention; leave it out"
    with pytest.raises(UserError, match=message):
        prepare(tiny_models.build("resnet"), freeze_groups=["attention"])


def test_blocks_and_groups_add_up():
    model = tiny_models.build("vit")
    last = trainable_names(prepare(model, "partial", unfreeze_blocks=1))
    both = trainable_names(
        prepare(model, "partial", unfreeze_blocks=1, unfreeze_groups=["embeddings"])
    )
    embeddings = {name for name, _ in model.named_parameters()} - set(
        parameters_from_block(model, 0)
    )
    assert last < both and both - last == embeddings


@pytest.mark.parametrize("family", ["vit", "efficientnet"])
def test_frozen_groups_come_out_of_a_run_to_the_bit(family, tiny, train):
    groups = ["norms", "embeddings"]
    run = train("run", tiny(family), freeze_groups=groups, weight_decay=0.1)
    before, after = load_file(tiny(family) / "model.safetensors"), saved_weights(run)
    everything = {name for name, _ in tiny_models.build(family).named_parameters()}
    frozen = everything - trainable_names(prepare(tiny_models.build(family), freeze_groups=groups))
    frozen |= {name for name in after if "running_" in name}  # statistics of frozen norms
    moved = {n for n in after if n in before and not torch.equal(before[n], after[n])}
    assert not moved & frozen and any(name.endswith(".weight") for name in moved)
