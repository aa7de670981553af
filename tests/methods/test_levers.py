"""What trains when and how: freezing by groups and by schedule, averaged weights, Muon, rates,
early stopping, temperature.
"""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
from helpers import tiny_models
from safetensors.torch import load_file
from test_run import (  # noqa: F401
    EVERY_3,
    Cut,
    _no_plots,
    cut_at,
    go,
    held_out,
    history,
    numbers,
    piped,
    same_weights,
    weights,
)
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.methods.parameter_groups import learning_rate_scale, parameter_groups
from hf_cifar.methods.schedules import UnfreezeSchedule
from hf_cifar.methods.trainable import adapt, from_block
from hf_cifar.models.load import load_backbone
from hf_cifar.models.structure import blocks, head
from hf_cifar.recipe.fields import MethodKeys, ModelKeys
from hf_cifar.training import checkpoints
from hf_cifar.training.muon import MuonWithFallback
from hf_cifar.training.trainer import CifarTrainer
from hf_cifar.training.weight_average import WeightAverage

LABELS = list("abcdefghij")
GROUPS = ("norms", "biases", "attention", "embeddings", "head")


def adapted(family, **keys):
    return adapt(tiny_models.build(family), MethodKeys(**keys), "base")


def trainable(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


# ---- freezing by groups ----


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_named_groups_are_what_their_names_say(family):
    model = tiny_models.build(family)
    norms = {
        m
        for m in model.modules()
        if isinstance(m, nn.LayerNorm | nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
    }
    everything = {n for n, _ in model.named_parameters()}
    top = head(model)[0] + "."
    for group in ("norms", "biases", "embeddings"):
        frozen = everything - trainable(adapted(family, freeze_groups=[group]))
        assert frozen and not any(n.startswith(top) for n in frozen)
        if group == "norms":
            assert frozen == {
                n for n in everything if model.get_submodule(n.rpartition(".")[0]) in norms
            }
        if group == "biases":
            assert all(n.endswith(".bias") for n in frozen)
        if group == "embeddings":
            assert not any(n.startswith(block + ".") for n in frozen for block, _ in blocks(model))
    only = trainable(
        adapted(family, method="partial", unfreeze_blocks=0, unfreeze_groups=["biases"])
    )
    assert only == {
        n for n in everything if n.endswith(".bias") or n.startswith(top)
    }  # BitFit, and the head


def test_a_group_that_a_model_lacks_is_named():
    with pytest.raises(
        UserError,
        match="freeze_groups: ResNetForImageClassification has no attention; leave it out",
    ):
        adapted("resnet", freeze_groups=["attention"])


def test_blocks_and_groups_add_up():
    model = tiny_models.build("vit")
    last = trainable(adapted("vit", method="partial", unfreeze_blocks=1))
    both = trainable(
        adapted("vit", method="partial", unfreeze_blocks=1, unfreeze_groups=["embeddings"])
    )
    assert last < both and both - last == {n for n, _ in model.named_parameters()} - set(
        from_block(model, 0)
    )


@pytest.mark.parametrize("family", ["vit", "efficientnet"])
def test_what_is_frozen_comes_out_to_the_bit(family, tiny, go):  # noqa: F811
    run = go("run", tiny(family), freeze_groups=["norms", "embeddings"], weight_decay=0.1)
    before, after = load_file(tiny(family) / "model.safetensors"), weights(run)
    frozen = {n for n, _ in tiny_models.build(family).named_parameters()} - trainable(
        adapted(family, freeze_groups=["norms", "embeddings"])
    )
    frozen |= {
        n for n in after if "running_" in n
    }  # statistics of frozen norms are the pretrained ones
    moved = {n for n in after if n in before and not torch.equal(before[n], after[n])}
    names = {n.rpartition(".")[2] for n in moved}
    assert moved and not moved & frozen and "weight" in names


# ---- freezing by schedule ----


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_gradual_unfreezing_goes_from_the_top_to_everything(family):
    model = tiny_models.build(family)
    thaw, count = UnfreezeSchedule(model, MethodKeys(unfreeze_every=0.5)), len(blocks(model))
    assert [thaw.stage_at(e) for e in (0.0, 0.49, 0.5, 1.0, 99)] == [0, 0, 1, 2, count + 1]
    stages = [thaw.names(k) for k in range(count + 2)]
    assert all(a < b for a, b in itertools.pairwise(stages))
    assert stages[0] == {
        n for n, _ in model.named_parameters() if n.startswith(head(model)[0] + ".")
    }
    last = trainable(adapted(family, method="partial", unfreeze_blocks=1))
    assert stages[1] == last and stages[-1] == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("schedule", [{"head_epochs": 1}, {"unfreeze_every": 1}])
@pytest.mark.parametrize("method", ["full", "lora"])
# noqa: F811
def test_a_schedule_freezes_to_the_bit_until_its_time(schedule, method, tiny, go, monkeypatch):
    seen = []  # after each step: which weights have moved since the start
    start = {}
    original = CifarTrainer.compute_loss

    def compute_loss(self, model, *args, **kwargs):
        if model.training:
            now = {n: p.detach().clone() for n, p in self.model.named_parameters()}
            start.update({} if start else now)
            seen.append(
                (self.state.epoch or 0.0, {n for n in now if not torch.equal(now[n], start[n])})
            )
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(CifarTrainer, "compute_loss", compute_loss)
    run = go(
        "run",
        tiny("vit"),
        method=method,
        **schedule,
        num_train_epochs=3,
        weight_decay=0.1,
        optim="adamw_torch",
    )
    top = "classifier"
    for epoch, moved in seen:
        if epoch <= 1:  # the step that begins at 1 has not been made yet
            assert all(top in n for n in moved)
        elif "unfreeze_every" in schedule and epoch <= 2:
            assert all(top in n or ".2." in n or "layernorm." in n for n in moved)
    assert any(".0." in n for n in seen[-1][1]) == ("head_epochs" in schedule)
    assert run.metrics["global_step"] == 15


def test_a_schedule_is_the_same_run_after_a_resume(tiny, go, monkeypatch):  # noqa: F811
    keys = EVERY_3 | {
        "unfreeze_every": 0.6,
        "num_train_epochs": 3,
        "ema_decay": 0.8,
        "mixup_alpha": 0.4,
        "muon": True,
    }
    whole = go("whole", tiny("vit"), **keys)
    for step in (4, 10):
        with monkeypatch.context() as m, pytest.raises(Cut):
            cut_at(m, step)
            go(f"cut{step}", tiny("vit"), **keys)
        resumed = go(f"cut{step}", tiny("vit"), **keys)
        same_weights(whole, resumed)
        assert history(resumed) == history(whole)
        assert numbers(resumed) == numbers(whole)


EVERYTHING = {
    "method": "lora",
    "bf16": True,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "max_train_samples": 27,
    "num_train_epochs": 2,
    "head_epochs": 0.5,
    "head_learning_rate": 0.01,
    "layer_decay": 0.8,
    "scale_learning_rate": "sqrt",
    "scale_learning_rate_base": 16,
    "weight_decay": 0.05,
    "lora_dropout": 0.1,
    "dropout": 0.1,
    "label_smoothing_factor": 0.1,
    "mixup_alpha": 0.4,
    "cutmix_alpha": 1.0,
    "random_erasing": 0.25,
    "auto_augment": "trivialaugment",
    "image_size_schedule": [[0, 24], [1, 32]],
    "muon": True,
    "ema_decay": 0.8,
    "early_stopping_patience": 9,
    "temperature_scaling": True,
    "tta": "flip",
}


def test_all_levers_at_once_resume_to_the_bit(tiny, go, monkeypatch):  # noqa: F811
    keys = EVERY_3 | EVERYTHING
    whole = go("whole", tiny("vit"), **keys)
    with monkeypatch.context() as m, pytest.raises(Cut):
        cut_at(m, 8)  # in the middle of a step of the last stage
        go("cut", tiny("vit"), **keys)
    resumed = go("cut", tiny("vit"), **keys)
    same_weights(whole, resumed)
    assert history(resumed) == history(whole) and numbers(resumed) == numbers(whole)
    assert whole.metrics["precision"] == "bf16" and whole.metrics["temperature"] != 1


# ---- the average of the weights ----


def test_the_average_is_the_recurrence(tiny, go, monkeypatch):  # noqa: F811
    kept, first = [], {}
    original = WeightAverage.on_step_end

    def on_step_end(self, *args, **kwargs):
        if not first:
            first.update({n: a.clone() for n, a in zip(self.names, self.average, strict=True)})
        original(self, *args, **kwargs)
        kept.append({n: t.detach().clone() for n, t in zip(self.names, self.tensors, strict=True)})

    monkeypatch.setattr(WeightAverage, "on_step_end", on_step_end)
    run = go("run", tiny("efficientnet"), ema_decay=0.7, validation_fraction=0.0)
    want = {n: t.double() for n, t in first.items()}
    for step in kept:
        want = {n: 0.7 * a + 0.3 * step[n].double() for n, a in want.items()}
    saved = weights(run)
    assert len(kept) == run.metrics["global_step"] and any("running_mean" in n for n in want)
    model = load_backbone(
        ModelKeys(model_name_or_path=str(run.path)), list(run.metrics["labels"])
    ).model
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    assert len(saved) >= len(want)
    for name, tensor in want.items():
        if not name.startswith(head(model)[0]):  # load_backbone makes a new head
            torch.testing.assert_close(named[name].detach().double(), tensor, atol=1e-6, rtol=1e-5)
    assert not torch.equal(kept[-1][name], named[name])


def test_the_averaged_model_is_what_is_evaluated_and_saved(tiny, go):  # noqa: F811
    for method in ("full", "lora", "linear"):
        run = go(
            method,
            tiny("vit"),
            method=method,
            ema_decay=0.9,
            num_train_epochs=3,
            learning_rate=0.02,
        )
        images, labels = held_out(run)
        assert (piped(run.path, images).argmax(1) == labels).mean() == run.metrics["test_accuracy"]
        best = max(e["eval_accuracy"] for e in run.metrics["history"] if "eval_accuracy" in e)
        if method != "linear":
            assert run.metrics["validation_accuracy"] == pytest.approx(best)
        newest = checkpoints.last_good(run.path / "checkpoints")[0]
        assert (newest / "ema.safetensors").is_file() and checkpoints.damage(newest) is None


# ---- Muon ----


def test_muon_takes_the_matrices_of_the_blocks():
    model = tiny_models.build("vit")
    groups = parameter_groups(model, 1e-3, 0.1, 1e-2, 0.5, muon=True)
    chosen = [g for g in groups if g["muon"]]
    names = {id(p): n for n, p in model.named_parameters()}
    assert chosen and all(
        p.ndim == 2 and "layer" in names[id(p)] for g in chosen for p in g["params"]
    )
    assert sum(len(g["params"]) for g in chosen) == 6 * len(blocks(model))
    assert sum(len(g["params"]) for g in groups) == len(names)
    assert not any(
        g["muon"]
        for g in parameter_groups(tiny_models.build("resnet"), 1e-3, 0.1, None, 1.0, muon=True)
    )


def test_both_parts_step_and_come_back_from_their_state():
    def make():
        torch.manual_seed(0)
        layer = nn.Linear(6, 4)
        groups = [
            {"params": [layer.weight], "lr": 0.1, "weight_decay": 0.0, "muon": True},
            {"params": [layer.bias], "lr": 0.2, "weight_decay": 0.0, "muon": False},
        ]
        return layer, MuonWithFallback(groups, torch.optim.AdamW)

    def steps(layer, optimizer, schedule, count):
        for _ in range(count):
            layer(torch.ones(2, 6)).square().sum().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    layer, optimizer = make()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5**s)
    alone, alone_bias = copy.deepcopy(layer.weight.detach()), layer.bias.detach().clone()
    steps(layer, optimizer, schedule, 2)
    assert [g["lr"] for g in optimizer.param_groups] == [0.025, 0.05]
    reference = nn.Parameter(alone.clone())
    muon = torch.optim.Muon([reference], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    layer(torch.zeros(1, 6)).sum()  # no gradient kept
    fresh, _ = make()
    fresh(torch.ones(2, 6)).square().sum().backward()
    reference.grad = fresh.weight.grad
    muon.step()
    once, optimizer1 = make()
    steps(once, optimizer1, torch.optim.lr_scheduler.LambdaLR(optimizer1, lambda s: 1.0), 1)
    torch.testing.assert_close(once.weight.detach(), reference.detach(), rtol=0, atol=0)
    assert not torch.equal(layer.bias.detach(), alone_bias)

    state, rates = copy.deepcopy(optimizer.state_dict()), schedule.state_dict()
    kept = copy.deepcopy(layer.state_dict())
    steps(layer, optimizer, schedule, 2)
    again, other = make()
    again.load_state_dict(kept)
    other.load_state_dict(state)
    schedule = torch.optim.lr_scheduler.LambdaLR(other, lambda s: 0.5**s)
    schedule.load_state_dict(rates)
    for group, rate in zip(other.param_groups, rates["_last_lr"], strict=True):
        group["lr"] = rate
    steps(again, other, schedule, 2)
    assert torch.equal(again.weight, layer.weight) and torch.equal(again.bias, layer.bias)


# ---- rates, regularisation, stopping ----


def test_rates_scale_with_the_batch(tiny, go, caplog):  # noqa: F811
    assert learning_rate_scale(MethodKeys(), 1024) == 1
    assert learning_rate_scale(MethodKeys(scale_learning_rate="linear"), 1024) == 4
    assert (
        learning_rate_scale(
            MethodKeys(scale_learning_rate="sqrt", scale_learning_rate_base=64), 1024
        )
        == 4
    )
    keys = {
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    with caplog.at_level("INFO", "hf_cifar"):
        run = go(
            "run", tiny("vit"), scale_learning_rate="linear", scale_learning_rate_base=64, **keys
        )
        assert "0.25 times the recipe's: 16 images an update" in caplog.text
    same = go("same", tiny("vit"), learning_rate=0.005 / 4, **keys)
    same_weights(run, same)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_dropout_and_drop_path_reach_the_model_or_are_refused(family, tiny):
    has = {"dropout": {"vit", "deit", "dinov2", "swin", "efficientnet", "timm", "timm_vit"}}
    has["drop_path_rate"] = {"dinov2", "swin", "convnext", "efficientnet", "timm", "timm_vit"}
    for key, families in has.items():
        wanted = ModelKeys(model_name_or_path=str(tiny(family)), head_init="default", **{key: 0.5})
        if family not in families:
            with pytest.raises(UserError, match=f"{key}: {family} has none"):
                load_backbone(wanted, LABELS)
            continue
        model = load_backbone(wanted, LABELS).model.train()
        pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        hidden = []
        # noqa: B023
        hook = head(model)[1].register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        with torch.no_grad():
            model(pixel_values=pixels), model(pixel_values=pixels)
            model.eval()(pixel_values=pixels), model(pixel_values=pixels)
        hook.remove()
        assert torch.equal(hidden[2], hidden[3])
        if (family, key) == (
            "timm",
            "drop_path_rate",
        ):  # its residual branches start at zero, and so nothing shows
            assert any(m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath")
        else:
            assert not torch.equal(hidden[0], hidden[1])


# noqa: F811
def test_training_stops_when_nothing_gets_better_and_a_resume_knows(tiny, go, monkeypatch):
    keys = {
        "early_stopping_patience": 2,
        "early_stopping_threshold": 0.9,
        "num_train_epochs": 6,
        "save_total_limit": 9,
    }
    run = go("run", tiny("vit"), **keys)
    assert run.metrics["global_step"] == 15 and run.metrics["best_step"] in (5, 10, 15)
    with monkeypatch.context() as m, pytest.raises(Cut):
        cut_at(m, 12)  # after the first evaluation that was no better
        go("cut", tiny("vit"), **keys)
    resumed = go("cut", tiny("vit"), **keys)
    same_weights(run, resumed)
    assert history(resumed) == history(run)


@pytest.mark.parametrize(
    "keys", [{"early_stopping_patience": 1, "early_stopping_threshold": 0.9}, {"max_steps": 7}]
)
# noqa: F811
def test_a_run_that_was_cut_while_it_scored_trains_no_further(keys, tiny, go, tmp_path):
    keys = {**keys, "num_train_epochs": 4, "eval_strategy": "epoch"}
    keys |= {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 7,
        "save_steps": 7,
        "save_total_limit": 9,
    }
    whole = go("run", tiny("vit"), **keys)
    told, scores = history(whole), numbers(whole)
    saved = weights(whole)
    (tmp_path / "run" / "metrics.json").unlink()
    again = go("run", tiny("vit"), **keys)
    assert history(again) == told and numbers(again) == scores
    assert all(torch.equal(saved[k], v) for k, v in weights(again).items())


def test_a_batch_that_does_not_fit_shrinks(tiny, go, monkeypatch):  # noqa: F811
    original = CifarTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training and len(inputs["labels"]) > 7:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
            )
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CifarTrainer, "compute_loss", compute_loss)
    run = go("run", tiny("vit"), auto_find_batch_size=True, num_train_epochs=1)
    monkeypatch.undo()
    steps = run.metrics["global_step"]
    assert steps > 4 and run.metrics["train_samples_per_second"] < 1e6
    rate = run.metrics["train_samples_per_second"] * run.metrics["train_runtime"]
    assert rate / steps == pytest.approx(7, abs=1e-3)  # what fitted, not what was asked for


# ---- temperature and mirror images ----


@pytest.mark.parametrize("method", ["full", "lora", "linear"])
def test_the_temperature_is_in_the_saved_head(method, tiny, go):  # noqa: F811
    keys = {
        "method": method,
        "validation_fraction": 0.4,
        "num_train_epochs": 4,
        "learning_rate": 0.02,
        "tta": "flip",
    }
    plain = go("plain", tiny("vit"), **keys)
    tempered = go("tempered", tiny("vit"), **keys, temperature_scaling=True)
    a, b, t = weights(plain), weights(tempered), tempered.metrics["temperature"]
    assert t != 1
    for name in a:
        scale = t if name.startswith("classifier") else 1
        torch.testing.assert_close(b[name] * scale, a[name], atol=1e-6, rtol=1e-5)
    m, p = tempered.metrics, plain.metrics
    assert (
        m["validation_nll"]
        <= m["validation_nll_before_temperature"]
        == pytest.approx(p["validation_nll"])
    )
    assert m["test_accuracy"] == p["test_accuracy"] and m[
        "test_ece_before_temperature"
    ] == pytest.approx(p["test_ece"])
    images, labels = held_out(tempered)
    answers = piped(tempered.path, images)
    assert -np.log(answers[np.arange(20), labels]).mean() == pytest.approx(m["test_nll"], abs=1e-4)
    mirrored = piped(tempered.path, [i.transpose(0) for i in images])
    both = (answers + mirrored) / 2
    assert (both.argmax(1) == labels).mean() == m["test_flip_accuracy"]
    assert -np.log(both[np.arange(20), labels]).mean() == pytest.approx(
        m["test_flip_nll"], abs=1e-4
    )
    card = (tempered.path / "README.md").read_text()
    assert "temperature" in card and "mirror" in card
    if method == "lora":
        adapter = load_file(tempered.path / "adapter" / "adapter_model.safetensors")
        held = next(v for n, v in adapter.items() if n.endswith("classifier.weight"))
        torch.testing.assert_close(held, b["classifier.weight"])
    assert "flipped" not in json.dumps(sorted(m))
