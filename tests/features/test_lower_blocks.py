"""What is frozen runs once: hidden states cached before the first block that trains lead to the
same model, to the bit.
"""

import resource
import shutil

import numpy as np
import pytest
import torch
from helpers import tiny_models
from test_design import Waits
from test_run import BASE, EVERY_3, Cut, cut_at, history, numbers, same_weights, weights
from torch import nn

import hf_cifar
from hf_cifar.features.lower_blocks import CannotCache, FrozenLowerBlocks
from hf_cifar.methods.trainable import adapt
from hf_cifar.models.structure import blocks, head
from hf_cifar.recipe.fields import MethodKeys
from hf_cifar.reporting import predictions
from hf_cifar.runs import run, stages

SLOW = pytest.mark.slow
PLAIN = {"random_resized_crop_scale": None, "horizontal_flip": 0.0}
SETS = 40 + 20 + 20  # what BASE's cuts leave for training, validation and test


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch, tmp_path):
    monkeypatch.setattr(predictions, "write_plots", lambda *_: None)
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def go(tmp_path):
    """go("run", model_folder, key=value, ...): a partial run without augmentation in tmp_path/run."""

    def train(name, model, **keys):
        import yaml

        path = tmp_path / f"{name}.yaml"
        path.write_text(
            yaml.safe_dump(
                BASE | PLAIN | {"method": "partial", "model_name_or_path": str(model)} | keys
            )
        )
        return hf_cifar.train(str(path), output_dir=str(tmp_path / name))

    return train


@pytest.fixture
def lowest(monkeypatch):
    """How many images each pass through the first, frozen block had; one image counts FLOPs, two
    and three are a probe's.
    """
    seen: list[int] = []
    load = run.load_backbone

    def counted(*args):
        backbone = load(*args)
        forward = blocks(backbone.model)[0][1].forward

        def noting(x, *rest, **kwargs):
            seen.append(len(x))
            return forward(x, *rest, **kwargs)

        blocks(backbone.model)[0][1].forward = noting
        return backbone

    monkeypatch.setattr(run, "load_backbone", counted)
    return seen


def at_every_step(monkeypatch):
    """Let what is frozen run at every step."""

    def refuse(*_, **__):
        raise CannotCache("a test wants it so")

    monkeypatch.setattr(stages, "Prefix", refuse)


def model_of(family, count=1):
    model = tiny_models.build(family)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # Swin's own config has stochastic depth
    keys = MethodKeys(method="partial", unfreeze_blocks=count)
    return adapt(model, keys, "")


def pictures(count, channels_last=False):
    pixels = torch.randn(
        count, 3, tiny_models.SIZE, tiny_models.SIZE, generator=torch.Generator().manual_seed(9)
    )
    return pixels.contiguous(memory_format=torch.channels_last) if channels_last else pixels


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_gives_the_same_bits_from_a_hidden_state(family, bf16):
    model = model_of(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    autocast, channels_last = torch.bfloat16 if bf16 else None, bf16
    prefix = FrozenLowerBlocks(
        model, tiny_models.SIZE, autocast=autocast, channels_last=channels_last
    )
    assert lower_blocks.name == blocks(model)[-1][0]
    pixels = pictures(5, channels_last)
    seen: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, a, o, name=name: seen.append(name))

    def answers(**inputs):
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(**inputs).logits
        return logits, torch.autograd.grad(
            logits.float().square().sum(), [p for p in model.parameters() if p.requires_grad]
        )

    want, gradients = answers(pixel_values=pixels)
    below = [f"{name}." for name, _ in blocks(model)[:-1]]
    assert any(s.startswith(tuple(below)) for s in seen)
    hidden = lower_blocks.unpack(torch.from_numpy(lower_blocks.pack(lower_blocks.compute(pixels))))
    lower_blocks.install()
    found, others = answers(hidden=hidden)
    assert not any(s.startswith(tuple(below)) for s in seen)  # nothing inside the frozen blocks ran
    assert torch.equal(want, found) and want.std() > 0
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert torch.equal(answers(pixel_values=pixels)[0], want)  # as ever, where it gets images
    lower_blocks.remove()
    assert torch.equal(answers(pixel_values=pixels)[0], want)
    assert not any("forward" in vars(m) for m in model.modules())
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)


def test_the_probe_leaves_no_trace():
    model = model_of("resnet").train()
    state = torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    FrozenLowerBlocks(model, tiny_models.SIZE, autocast=None, channels_last=False)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )  # batch norms' statistics too
    assert not any(p.grad is not None for p in model.parameters())
    assert not any(m._forward_pre_hooks_with_kwargs for m in model.modules())


@pytest.fixture
def backbone(tiny, tmp_path):
    """As `tiny`, without stochastic depth, which Swin's own config has."""

    def folder(family):
        copy = shutil.copytree(tiny(family), tmp_path / f"tiny-{family}")
        if family == "swin":
            tiny_models.edit_config(copy, drop_path_rate=0.0)
        return copy

    return folder


def drop(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5


def norms(model):
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.requires_grad_(True)


def positions(model):
    for name, parameter in model.named_parameters():
        if "position_embeddings" in name:
            parameter.requires_grad_(True)


class _Peeks(nn.Module):
    """A last norm that looks back at the pixels, past the blocks."""

    def __init__(self, model):
        super().__init__()
        self.norm, self.seen = model.vit.layernorm, []
        model.register_forward_pre_hook(
            lambda _, args, kwargs: self.seen.append(kwargs["pixel_values"]), with_kwargs=True
        )

    def forward(self, x):
        return self.norm(x) + self.seen.pop().mean((1, 2, 3))[:, None, None]


def peek(model):
    model.vit.layernorm = _Peeks(model)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (drop, "random in training"),
        (norms, "the first block trains"),
        (positions, "position_embeddings trains and comes before"),
        (lambda m: m.requires_grad_(True), "the first block trains"),
        (peek, "not the same to the bit"),
    ],
)
def test_what_can_not_be_left_out_is_told(change, why):
    model = model_of("vit")
    change(model)
    with pytest.raises(CannotCache, match=why):
        FrozenLowerBlocks(model, tiny_models.SIZE, autocast=None, channels_last=False)
    assert not any("forward" in vars(m) for m in model.modules())
    assert model(pixel_values=pictures(2)).logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        pytest.param("vit", {}, marks=SLOW),
        ("resnet", {"channels_last": True}),
        (
            "swin",
            {"feature_views": 2, "random_resized_crop_scale": [0.5, 1.0], "horizontal_flip": 0.5},
        ),
        pytest.param(
            "vit",
            {"bf16": True, "feature_views": 1, "random_resized_crop_scale": [0.5, 1.0]},
            marks=SLOW,
        ),
    ],
)
def test_training_from_cached_hidden_states_is_training(
    family, keys, backbone, go, lowest, monkeypatch
):
    """To the bit: CPU kernels may round a row of a batch of eight and of twenty differently, so
    both sides take batches of one size; with a first run that fills the cache and a second that
    reads it.
    """
    keys = keys | {"per_device_eval_batch_size": 8, "optim": "sgd", "learning_rate": 0.05}
    folder = backbone(family)
    with monkeypatch.context() as m:
        at_every_step(m)
        plain = go("plain", folder, **keys)
    assert sum(n for n in lowest if n > 3) > 2 * 40  # every epoch
    lowest.clear()
    first = go("first", folder, **keys)
    views, sample = (
        keys.get("feature_views", 1),
        0 if keys.get("feature_views") == 1 else 40 // 10 + 1,
    )
    assert sum(lowest) - 1 - 2 - 3 * 4 - SETS == sample + (views - 1) * 40
    lowest.clear()
    second = go("second", folder, **keys)
    assert sum(lowest) == 1 + 2 + 3 * 4  # FLOPs and the probe
    for other in (first, second):
        a, b = weights(plain), weights(other)
        assert list(a) == list(b) and max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-6
        assert other.metrics["test_nll"] == pytest.approx(plain.metrics["test_nll"], abs=1e-6)
    same_weights(first, second)
    assert history(first) == history(second) and numbers(first) == numbers(second)
    assert "features_runtime" in first.metrics and "features_runtime" not in plain.metrics
    moved = weights(first)
    before = tiny_models.build(family).state_dict()
    assert any(
        not torch.equal(v, before[k])
        for k, v in moved.items()
        if k in before and "classifier" not in k
    )


def test_augmented_anew_means_not_cached(tiny, go, lowest, tmp_path, caplog):
    with caplog.at_level("INFO", "hf_cifar"):
        go("run", tiny("vit"), random_resized_crop_scale=[0.5, 1.0])
    assert (
        "hidden states: none are cached: training images are augmented anew at every epoch"
        in caplog.text
    )
    assert (
        not (tmp_path / "cache" / "features").exists()
        and max(lowest) == 20
        and lowest.count(8) == 10
    )


def test_a_cut_run_goes_on_from_hidden_states(tiny, go, monkeypatch):
    whole = go("whole", tiny("deit"), **EVERY_3)
    with monkeypatch.context() as m, pytest.raises(Cut):
        cut_at(m, 8)
        go("cut", tiny("deit"), **EVERY_3)
    resumed = go("cut", tiny("deit"), **EVERY_3)
    same_weights(whole, resumed)
    assert history(resumed) == history(whole) and numbers(resumed) == numbers(whole)


def test_too_little_disk(tiny, go, tmp_path, monkeypatch, caplog):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with caplog.at_level("INFO", "hf_cifar"):
        go("run", tiny("vit"), max_steps=1)
    assert "more than half of the free disk" in caplog.text
    assert not list((tmp_path / "cache" / "features").iterdir())


def test_a_disk_that_fills_up_is_survived(tiny, go, tmp_path, caplog):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    plain = go("first", tiny("vit"), max_steps=2, save_strategy="no")
    shutil.rmtree(tmp_path / "cache" / "features")
    from hf_cifar.features import lower_blocks

    computed = lower_blocks._computed

    def on_a_full_disk(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            return computed(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with pytest.MonkeyPatch.context() as m, caplog.at_level("INFO", "hf_cifar"):
        m.setattr(lower_blocks, "_computed", on_a_full_disk)
        run = go("second", tiny("vit"), max_steps=2, save_strategy="no")
    assert "hidden states can't be written (" in caplog.text
    assert not list((tmp_path / "cache" / "features").iterdir())
    a, b = weights(plain), weights(run)
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-6


def test_features_that_no_disk_takes_leave_nothing_behind(tiny, go, tmp_path, monkeypatch, caplog):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    first = go("first", tiny("vit"), method="linear", max_steps=2, save_strategy="no")
    shutil.rmtree(tmp_path / "cache" / "features")
    compute = stages.compute_features

    def on_a_full_disk(*args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            return compute(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(stages, "compute_features", on_a_full_disk)
    with caplog.at_level("WARNING", "hf_cifar"):
        second = go("second", tiny("vit"), method="linear", max_steps=2, save_strategy="no")
    assert "features: not cached: " in caplog.text
    assert not list((tmp_path / "cache" / "features").iterdir())
    same_weights(first, second)


def test_a_damaged_file_is_computed_anew(tiny, go, tmp_path, caplog):
    first = go("first", tiny("vit"), max_steps=2)
    for path in (tmp_path / "cache" / "features").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-10])
    with caplog.at_level("INFO", "hf_cifar"):
        second = go("second", tiny("vit"), max_steps=2)
    assert "is damaged; computed anew" in caplog.text
    same_weights(first, second)


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=SLOW), True])
def test_compiled_and_checkpointed(checkpointing):
    """What the Trainer may do with the model afterwards."""
    model = model_of("vit").train()
    prefix = FrozenLowerBlocks(model, tiny_models.SIZE, autocast=None, channels_last=False)
    pixels = pictures(4)
    hidden = lower_blocks.compute(pixels)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lower_blocks.install()
    compiled = torch.compile(model, backend="eager")
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for inputs in (
        {"pixel_values": pixels},
        {"hidden": hidden},
        {"hidden": hidden[:3]},
        {"pixel_values": pixels[:3]},
    ):
        logits = compiled(**inputs).logits
        found.append((logits, *torch.autograd.grad(logits.square().sum(), trained)))
    for a, b in ((0, 1), (3, 2)):
        assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(found[a], found[b], strict=True))
    assert not torch.allclose(found[0][0][:3], hidden.new_zeros(()), atol=1e-3)
    assert np.isfinite(found[0][0].detach().numpy()).all()
    assert head(model)[1].weight.std() > 0


@pytest.mark.parametrize("keys", [pytest.param({}, marks=SLOW), {"feature_views": 2}])
def test_no_step_on_hidden_states_waits_for_the_device(keys, tiny, go, monkeypatch):
    waits, steps = Waits(), []

    class Watched(stages.Speed):
        def on_step_begin(self, args, state, control, **kwargs):
            super().on_step_begin(args, state, control, **kwargs)
            if state.global_step == 1:  # the first step sets things up
                waits.__enter__()

        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            steps.append(state.global_step)
            if state.global_step == state.max_steps:
                waits.__exit__(None, None, None)

    monkeypatch.setattr(stages, "Speed", Watched)
    quiet = {"eval_strategy": "no", "save_strategy": "no", "logging_steps": 100, "max_steps": 5}
    go("run", tiny("vit"), **keys, **quiet)
    assert steps == [1, 2, 3, 4, 5] and waits.seen == []
