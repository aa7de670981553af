"""Masked autoencoding: masks, loss, weights that a run begins from, and what it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from helpers.runs import CHECKPOINT_EVERY_3, assert_same_run, without_drawing, write_recipe
from safetensors.torch import load_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTModel, pipeline

from hf_cifar.augmentation.masking import patch_order
from hf_cifar.cli import main
from hf_cifar.models.masked_autoencoder import MaskedAutoencoder, load_masked_autoencoder
from hf_cifar.objectives.base import ReadyModel
from hf_cifar.objectives.masked_autoencoder import MaskedAutoencoding
from hf_cifar.recipe.load import load_recipe
from hf_cifar.runs.run import Run

DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TINY = {"model_type": "vit_mae"} | ENCODER | DECODER
PRETRAIN: dict[str, Any] = {
    "objective": "masked_autoencoder",
    "metric_for_best_model": "loss",
    "from_scratch": True,
    "model_config": TINY,
    "max_train_samples": 100,
    "max_eval_samples": 60,
}


@pytest.fixture
def pretrain(train: Callable[..., Run]) -> Callable[..., Run]:
    """pretrain("run", key=value, ...): a tiny pre-training in tmp_path/run."""
    return lambda name, **keys: train(name, Path("unused"), **PRETRAIN | keys)


def recipe_of(tmp_path: Path, **keys: Any) -> Any:
    model = keys.pop("model_name_or_path", "unused")
    return load_recipe(str(write_recipe(tmp_path / "mine.yaml", model, **PRETRAIN | keys)))


# ---- masks ----


def test_a_mask_depends_on_seed_epoch_and_image_alone() -> None:
    epoch, index = torch.full((64,), 3), torch.arange(64)
    orders = patch_order(0, epoch, index, 196)
    assert torch.equal(orders.sort(1).values, torch.arange(196.0).expand(64, -1))  # no ties
    for rows in ([5], [63, 2, 5], list(range(10, 40, 2))):  # batches of any size, of any process
        assert torch.equal(patch_order(0, epoch[rows], index[rows], 196), orders[rows])
    for other in (patch_order(1, epoch, index, 196), patch_order(0, epoch + 1, index, 196)):
        assert not (other == orders).all(1).any()
    hidden = (orders >= 49).double().mean(0)  # of each place, over the images: three quarters
    assert abs(hidden.mean() - 0.75) < 1e-6 and hidden.min() > 0.4


def test_the_training_batches_carry_those_masks(tmp_path: Path) -> None:
    objective = MaskedAutoencoding(recipe_of(tmp_path))
    backbone, device = objective.load_backbone(), torch.device("cpu")
    train = objective.datasets(ReadyModel(backbone, backbone.model, device)).train
    tickets = [2 * len(train) + index for index in (3, 17, 30)]
    inputs = train.model_inputs(train.__getitems__(tickets), device)
    expected = patch_order(0, torch.full((3,), 2), torch.tensor([3, 17, 30]), 16)
    assert torch.equal(inputs["noise"], expected) and inputs["pixel_values"].shape == (3, 3, 32, 32)


# ---- model ----


def autoencoder() -> MaskedAutoencoder:
    torch.manual_seed(0)
    settings = {name: value for name, value in TINY.items() if name != "model_type"}
    model = MaskedAutoencoder(ViTMAEConfig(**settings, norm_pix_loss=True))
    model.draw_weights()
    return model


def test_loss_and_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    ours, pixels = autoencoder(), torch.randn(6, 3, 32, 32)
    theirs = ViTMAEForPreTraining(ours.config)
    theirs.load_state_dict(ours.state_dict())
    noise = patch_order(0, torch.zeros(6).long(), torch.arange(6), 16)
    expected = theirs(pixels, noise=noise)
    objective = MaskedAutoencoding(recipe_of(tmp_path))
    loss = objective.loss(ours(pixels, noise=noise), torch.zeros(6))
    torch.testing.assert_close(loss, expected.loss, rtol=0, atol=1e-5)
    parts = [
        objective.loss(ours(pixels[rows], noise=noise[rows]), None, torch.tensor(6))
        for rows in (slice(0, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), expected.loss, rtol=0, atol=1e-5)
    loss.backward()
    expected.loss.backward()
    for (name, our), (_, their) in zip(ours.named_parameters(), _trained(theirs), strict=True):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-4, atol=1e-6, msg=name)


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def test_positions_are_the_papers_and_features_those_of_the_saved_encoder() -> None:
    model, pixels = autoencoder().eval(), torch.randn(2, 3, 32, 32)
    theirs = ViTMAEForPreTraining(model.config)
    del theirs.vit.embeddings.patch_embeddings.projection._is_hf_initialized
    theirs.vit.embeddings.initialize_weights()
    ours = model.vit.embeddings.position_embeddings
    torch.testing.assert_close(ours, theirs.vit.embeddings.position_embeddings)
    assert "position" not in " ".join(name for name, _ in model.named_parameters())
    with torch.no_grad():
        features = model(pixels, with_features=True).logits[:, 1:]
        tokens = model.encoder().eval()(pixels).last_hidden_state
    torch.testing.assert_close(features, tokens[:, 0], rtol=0, atol=1e-5)


def test_a_run_begins_from_a_checkpoint_or_a_plain_vit_at_any_size(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    model = autoencoder()
    model.save_pretrained(tmp_path / "mae")
    shutil.copy(tiny("vit") / "preprocessor_config.json", tmp_path / "mae")
    keys = {"from_scratch": False, "model_config": None, "model_name_or_path": tmp_path / "mae"}
    again = load_masked_autoencoder(recipe_of(tmp_path, **keys), 0.5)
    assert again.model.config.mask_ratio == 0.5 and again.image_size == 32
    for name, value in model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    larger = load_masked_autoencoder(recipe_of(tmp_path, **keys, image_size=48), 0.5)
    assert larger.model(torch.randn(1, 3, 48, 48)).logits.shape == (1, 1)
    weights = larger.model.state_dict()
    assert torch.equal(weights["decoder.decoder_pred.weight"], model.decoder.decoder_pred.weight)
    assert weights["decoder.decoder_pos_embed"].shape == (1, 37, 16)

    keys |= {"model_config": DECODER, "model_name_or_path": tiny("vit")}
    around = load_masked_autoencoder(recipe_of(tmp_path, **keys), 0.75)
    original = ViTModel.from_pretrained(tiny("vit"), add_pooling_layer=False).state_dict()
    for name, value in original.items():
        assert torch.equal(around.model.vit.state_dict()[name], value), name
    assert around.model.config.decoder_hidden_size == 16


# ---- runs ----


def test_pretrain_then_fine_tune_then_pipeline_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, classifier = tmp_path / "encoder", tmp_path / "classifier"
    path = tmp_path / "mae.yaml"
    write_recipe(path, Path("unused"), **PRETRAIN)
    assert main.run(["train", str(path), "--output_dir", str(encoder)]) == 0
    assert (encoder / "plots" / "reconstructions.png").stat().st_size > 10_000
    assert json.loads((encoder / "config.json").read_text())["model_type"] == "vit"
    metrics = json.loads((encoder / "metrics.json").read_text())
    evaluations = [entry for entry in metrics["history"] if "eval_loss" in entry]
    assert len(evaluations) == 2
    assert all("eval_knn_accuracy" in entry for entry in evaluations)
    assert 0 < metrics["test_knn_accuracy"] < 1 and 0 < metrics["test_linear_accuracy"] < 1
    card = (encoder / "README.md").read_text()
    assert "pretrained without labels" in card and "100 images of CIFAR-10" in card
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "image-feature-extraction"
    assert main.run(["push", str(encoder), "--to", "user/name"]) == 2
    assert "its model is for image-feature-extraction" in capsys.readouterr().err
    extract = pipeline("image-feature-extraction", model=str(encoder))
    assert np.array(extract(PIL.Image.new("RGB", (40, 30)))).shape == (1, 17, 32)

    tuned = write_recipe(tmp_path / "tuned.yaml", encoder, max_steps=2)
    assert main.run(["train", str(tuned), "--output_dir", str(classifier)]) == 0
    saved, before = (
        {n.removeprefix("vit."): t for n, t in load_file(f / "model.safetensors").items()}
        for f in (classifier, encoder)
    )
    for name, value in before.items():  # two steps from the encoder's weights, not from new ones
        assert (saved[name] - value).abs().max() < 0.05, name
    classify = pipeline("image-classification", model=str(classifier))
    assert "airplane" in {
        answer["label"] for answer in classify(PIL.Image.new("RGB", (32, 32)), top_k=10)
    }


def test_a_stopped_run_resumes_to_the_same_bits(pretrain: Callable[..., Run]) -> None:
    keys = CHECKPOINT_EVERY_3 | {"ema_decay": 0.9, "layer_decay": 0.8, "num_train_epochs": 1}
    keys |= {"max_train_samples": 56}  # 7 steps
    whole = pretrain("whole", **keys)
    folder = pretrain("stopped", **keys).path
    for file in ("metrics.json", "model.safetensors"):
        (folder / file).unlink()
    newest = max(folder.glob("checkpoints/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    shutil.rmtree(newest)
    resumed = pretrain("stopped", **keys)
    assert_same_run(whole, resumed)
    pictures = [run.path / "checkpoints" / "reconstructions" / "6.npy" for run in (whole, resumed)]
    assert np.array_equal(*(np.load(path) for path in pictures))


def test_a_flat_folder_without_labels_is_enough(
    pretrain: Callable[..., Run], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        pixels = random.integers(0, 255, (32 + i % 2, 32, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    run = pretrain("flat", dataset_name=str(folder), random_resized_crop_scale=[0.5, 1.0])
    assert run.metrics["train_samples"] == 36 and run.metrics["validation_samples"] == 4
    assert run.metrics.get("test_loss") is None and run.metrics["validation_loss"] > 0
    assert not any("knn" in name for entry in run.metrics["history"] for name in entry)
    assert "The images have no labels" in (run.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mask_ratio": 1.5}, "mask_ratio: must be below 1, got 1.5"),
        ({"mask_ratio": 0}, "mask_ratio: must be above 0, got 0"),
        ({"mask_ratio": 0.99}, "mask_ratio: 0.99 leaves none of the 16 patches"),
        ({"method": "linear"}, "method: linear can't train `objective: masked_autoencoder`"),
        ({"mixup_alpha": 0.2}, "mixup_alpha: mixes images"),
        ({"push_to_hub": True, "hub_model_id": "user/name"}, "push_to_hub: only image"),
        ({"metric_for_best_model": "accuracy"}, "accuracy can't choose a checkpoint"),
        (
            {"model_config": TINY | {"decoder_hidden_size": 18}},
            "decoder_hidden_size is 18; it must be a multiple of 4",
        ),
        ({"model_config": TINY | {"image_size": 36}}, "36 is no multiple"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(
    keys: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "bad.yaml", Path("unused"), **PRETRAIN | keys)
    assert main.run(["train", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("resnet", "model_type resnet, and a masked autoencoder takes only vit and vit_mae"),
        ("timm", "model_type timm_wrapper, and a masked autoencoder takes only vit and vit_mae"),
    ],
)
def test_a_backbone_that_can_be_no_encoder_is_refused(
    family: str,
    message: str,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = PRETRAIN | {"from_scratch": False, "model_config": None}
    path = write_recipe(tmp_path / "bad.yaml", tiny(family), **keys)
    assert main.run(["train", str(path), "--output_dir", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_plan_and_find_lr_know_the_autoencoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "mae.yaml", Path("unused"), **PRETRAIN)
    assert main.run(["plan", str(path)]) == 0
    parameters = sum(p.numel() for p in autoencoder().parameters())
    assert f"{parameters / 1e6:,.1f} M parameters" in capsys.readouterr().out
    out = tmp_path / "lr"
    assert main.run(["find-lr", str(path), "--steps", "20", "--out", str(out)]) == 0
    assert (out / "find_lr.csv").is_file()


def test_the_packaged_recipe_continues_from_a_plain_vit_decoder_first(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = {
        "model_name_or_path": str(tiny("vit")),
        "model_config": json.dumps(DECODER),
        "dataset_name": "sample",
        "max_train_samples": 64,
        "max_eval_samples": 40,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "bf16": "false",
        "output_dir": str(tmp_path / "run"),
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    with without_drawing():
        assert main.run(["train", "mae/continue", *words]) == 0
    original = ViTModel.from_pretrained(tiny("vit"), add_pooling_layer=False).state_dict()
    folder = tmp_path / "run" / "checkpoints"
    first = load_file(folder / "checkpoint-4" / "model.safetensors")
    for name, value in original.items():  # in the first epoch only the decoder trains
        assert torch.equal(first[f"vit.{name}"], value), name
    last = load_file(folder / "checkpoint-8" / "model.safetensors")
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == {name for name in first if "pos" not in name}
    with without_drawing():
        assert main.run(["train", "mae/continue", *words, "--max_steps", "2", "--fresh"]) == 0
    assert {path.stem for path in (folder / "reconstructions").iterdir()} == {"2"}
