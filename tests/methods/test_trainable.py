"""What trains and what does not, for every method and family; adapters; optimizer groups."""

import copy
import re

import pytest
import torch
from helpers import tiny_models
from peft import PeftModel
from torch import nn
from transformers import AutoModelForImageClassification

from hf_cifar.errors import UserError
from hf_cifar.methods.lora import lora_targets
from hf_cifar.methods.parameter_groups import group_table, parameter_groups
from hf_cifar.methods.trainable import adapt
from hf_cifar.models.load import load_backbone
from hf_cifar.models.structure import blocks, head
from hf_cifar.recipe.fields import MethodKeys, ModelKeys

LABELS = list("abcdefghij")
METHODS = ("full", "linear", "partial", "lora")
ATTENDING = ("vit", "deit", "dinov2", "swin", "timm_vit")


def load(path):
    return load_backbone(ModelKeys(model_name_or_path=str(path)), LABELS).model


def keys(method, **more):
    return MethodKeys(method=method, lora_r=2, lora_alpha=4.0, **({"unfreeze_blocks": 1} | more))


def train(model, steps=3):
    """Real steps, as the Trainer makes them: train mode before each, our groups, weight decay."""
    groups = parameter_groups(model, 1e-2, 0.1, None, 1.0)
    optimizer = torch.optim.AdamW([{k: v for k, v in g.items() if k != "name"} for g in groups])
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        model.train()
        pixels, labels = (
            torch.randn(8, 3, 32, 32, generator=random),
            torch.randint(10, (8,), generator=random),
        )
        loss = nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def leaves_in_order(model):
    """Names of the modules that hold parameters themselves, in the order in which a forward pass
    reaches them.
    """
    order, hooks = [], []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: order.append(name)))
    with torch.no_grad():
        model.eval()(pixel_values=torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(order))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_what_trains_changes_and_nothing_else_does(family, method, tiny):
    model = load(tiny(family))
    own, _ = head(model)
    last = blocks(model)[-1][0]
    order = leaves_in_order(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    adapted = adapt(model, keys(method), "base")
    trains = {n for n, p in adapted.named_parameters() if p.requires_grad}

    if method == "full":
        assert trains == {n for n, _ in model.named_parameters()}
    elif method == "linear":
        assert trains == {f"{own}.weight", f"{own}.bias"}
    elif (
        method == "partial"
    ):  # from where a forward pass enters the last block: all of it; before: nothing
        start = next(i for i, name in enumerate(order) if name.startswith(last + "."))
        held = {
            name: {n for n, _ in model.get_submodule(name).named_parameters(recurse=False)}
            for name in order
        }
        assert {f"{name}.{n}" for name in order[start:] for n in held[name]} <= trains
        assert (
            not {
                f"{name}.{n}"
                for name in order[:start]
                for n in held[name]
                if not name.startswith(last)
            }
            & trains
        )
    else:
        assert all("lora_" in n or "modules_to_save" in n for n in trains)
        assert f"base_model.model.{own}.modules_to_save.default.weight" in trains

    frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    moving = {n: p.clone() for n, p in adapted.named_parameters() if p.requires_grad}
    buffers = {n: b.clone() for n, b in adapted.named_buffers()}
    train(adapted)
    now = dict(adapted.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
    still = [n for n, p in moving.items() if torch.equal(now[n], p) and "mask_token" not in n]
    assert not still
    changed = [n for n, b in adapted.named_buffers() if not torch.equal(b, buffers[n])]
    if method in ("linear", "lora"):
        assert not changed  # batch norms keep the pretrained statistics
    if method == "partial":
        assert all(any(n.startswith(p.rsplit(".", 1)[0]) for p in trains) for n in changed)
    if method == "full" and family in ("resnet", "efficientnet", "timm"):
        assert any("running_mean" in n for n in changed)
    if method == "linear":
        rest = {k: v for k, v in model.state_dict().items() if not k.startswith(own + ".")}
        assert all(torch.equal(v, before[k]) for k, v in rest.items())


@pytest.mark.parametrize("family", ["vit", "swin", "efficientnet"])
def test_partial_of_more_blocks_trains_more(family, tiny):
    counts = []
    for n in (1, 2, tiny_models.BLOCKS[family]):
        model = adapt(load(tiny(family)), keys("partial", unfreeze_blocks=n), "base")
        whole = [
            name
            for name, block in blocks(model)
            if all(p.requires_grad for p in block.parameters())
        ]
        assert whole == [name for name, _ in blocks(model)][-n:]
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert counts == sorted(set(counts))


def test_more_blocks_than_there_are(tiny):
    with pytest.raises(UserError, match="unfreeze_blocks: 9 is more than the 3 blocks"):
        adapt(load(tiny("vit")), keys("partial", unfreeze_blocks=9), "base")


# ---- lora ----


@pytest.mark.parametrize("target", ["attention", "mlp", "all"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_targets_lie_in_every_block_and_are_what_was_asked(family, target, tiny):
    model = load(tiny(family))
    chosen = lora_targets(model, target)
    names = [name for name, _ in blocks(model)]
    assert all(any(c.startswith(name + ".") for c in chosen) for name in names)
    assert all(any(c.startswith(name + ".") for name in names) for c in chosen)
    kinds = {type(model.get_submodule(c)) for c in chosen}
    attends = [bool(re.search("att", c.split(".", 2)[-1])) for c in chosen]
    if family in ATTENDING:
        assert kinds == {nn.Linear}
        assert {
            "attention": all(attends),
            "mlp": not any(attends),
            "all": any(attends) and not all(attends),
        }[target]
    else:
        assert kinds & {nn.Conv2d, nn.Linear} == kinds
        assert (nn.Conv2d in kinds) == (family != "convnext")
        assert all(getattr(model.get_submodule(c), "groups", 1) == 1 for c in chosen)


def test_named_targets_and_nothing_to_target(tiny):
    model = load(tiny("vit"))
    assert len(lora_targets(model, ["q_proj", "fc1"])) == 6
    with pytest.raises(UserError) as caught:
        lora_targets(model, ["query"])
    assert (
        "query" in str(caught.value)
        and "q_proj" in str(caught.value)
        and "\n" not in str(caught.value)
    )

    class Pointwise(nn.Module):  # blocks of depthwise convolutions only
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList(
                nn.Sequential(*(nn.Conv2d(8, 8, 3, groups=8) for _ in range(2))) for _ in range(2)
            )

    with pytest.raises(UserError, match="no blocks with linear layers or dense convolutions"):
        lora_targets(Pointwise(), "attention")


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_adapter_on_the_base_and_merged_weights_agree(family, tiny, tmp_path):
    adapted = train(
        adapt(load(tiny(family)), keys("lora", lora_target_modules="all"), "hub/base")
    ).eval()
    pixels = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        want = adapted(pixel_values=pixels).logits
    assert want.std() > 0.01
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    assert (
        PeftModel.from_pretrained(load(tiny(family)), tmp_path)
        .peft_config["default"]
        .base_model_name_or_path
        == "hub/base"
    )
    base = AutoModelForImageClassification.from_pretrained(
        tiny(family)
    )  # the checkpoint itself, by transformers alone
    onto = PeftModel.from_pretrained(base, tmp_path).eval()
    merged = copy.deepcopy(adapted).merge_and_unload().eval()
    with torch.inference_mode():
        torch.testing.assert_close(onto(pixel_values=pixels).logits, want, atol=1e-4, rtol=0)
        torch.testing.assert_close(merged(pixel_values=pixels).logits, want, atol=1e-4, rtol=0)
    assert not any("lora" in n for n, _ in merged.named_parameters())
    assert set(merged.state_dict()) == set(load(tiny(family)).state_dict())


# ---- optimizer groups ----


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_parameter_that_trains_is_in_one_group_with_the_right_rate(family, method, tiny):
    lr, wd, head_lr, decay = 1e-3, 0.05, 7e-3, 0.5
    model = adapt(load(tiny(family)), keys(method, lora_target_modules="all"), "base")
    groups = parameter_groups(model, lr, wd, head_lr, decay)
    placed = [id(p) for g in groups for p in g["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert group_table(groups).count("\n") == len(groups) == len({g["name"] for g in groups})
    found = {id(p): g for g in groups for p in g["params"]}
    reference = [
        name for name, _ in blocks(load(tiny(family)))
    ]  # block names without peft's wrapping
    n, own = len(reference), head(load(tiny(family)))[0]
    for name, p in model.named_parameters():
        if id(p) not in found:
            continue
        group, plain_name = found[id(p)], name.removeprefix("base_model.model.")
        plain = p.ndim < 2 or any(word in name for word in ("position", "pos_embed", "token"))
        assert group["weight_decay"] == (0.0 if plain else wd), name
        inside = [i for i, block in enumerate(reference) if plain_name.startswith(block + ".")]
        if plain_name.startswith(own + "."):
            assert group["lr"] == head_lr
        elif inside:
            assert group["lr"] == pytest.approx(lr * decay ** (n - inside[0])), name
        else:
            assert group["lr"] in [pytest.approx(lr * decay**k) for k in range(n + 2)]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_rates_never_fall_on_the_way_to_the_head(family, tiny):
    """In the order of a forward pass: whatever stands between blocks takes part in the decay."""
    model = load(tiny(family))
    rate = {
        id(p): g["lr"] for g in parameter_groups(model, 1.0, 0.0, None, 0.5) for p in g["params"]
    }
    order = leaves_in_order(model)
    rates = [
        rate[id(p)] for name in order for p in model.get_submodule(name).parameters(recurse=False)
    ]
    assert rates == sorted(rates)
    assert rates[-1] == 1.0 and rates[0] == 0.5 ** (tiny_models.BLOCKS[family] + 1)


def test_without_layer_decay_there_is_one_rate_but_for_the_head(tiny):
    groups = parameter_groups(load(tiny("vit")), 1e-3, 0.1, None, 1.0)
    assert {g["lr"] for g in groups} == {1e-3}
    groups = parameter_groups(load(tiny("vit")), 1e-3, 0.1, 1e-2, 1.0)
    assert {g["lr"] for g in groups if "head" in g["name"]} == {1e-2}
    assert {g["lr"] for g in groups if "head" not in g["name"]} == {1e-3}
