"""Progressive resizing: the side of training images is a function of the epoch, and position
embeddings learn through it.
"""

import numpy as np
import pytest
import torch
from helpers import tiny_models
from helpers.runs import CHECKPOINT_EVERY_3, assert_same_run, largest_difference, saved_weights
from helpers.watching import BeforeForward, stopped_in_step, trainer_callbacks
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import ViTImageProcessor

from hf_cifar.augmentation.transforms import Transforms
from hf_cifar.data.batches import ImageBatches
from hf_cifar.data.image_store import ImageTable
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.models.image_size import check_schedule
from hf_cifar.recipe.load import load_recipe

CPU = torch.device("cpu")
ALL = {
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "auto_augment": "randaugment",
    "random_erasing": 0.25,
    "label_smoothing_factor": 0.1,
    "image_size_schedule": [[0, 16], [1, 24], [2, 32]],
    "num_train_epochs": 3,
}


@pytest.fixture
def sides():
    """The (epoch, side) of every training batch that a model gets."""
    batches = []

    def note(state, inputs):
        batches.append((int(state.epoch or 0), inputs["pixel_values"].shape[-1]))

    with trainer_callbacks(BeforeForward(note)):
        yield batches


# ---- the side of a batch ----


def test_the_side_is_a_function_of_the_epoch():
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    transforms = Transforms(processor, 32, schedule=((0, 16), (2, 24), (5, 32)), mixup=0.8)
    assert [transforms.size_at(e) for e in range(8)] == [16, 16, 24, 24, 24, 32, 32, 32]
    assert Transforms(processor, 32).size_at(3) == 32
    labels = np.arange(10, dtype=np.int64)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    split = Split("train", ImageTable(pixels, labels, list("abcdefghij"), "", []), labels, labels)
    resized = {"interpolate_pos_encoding": True}
    training = ImageBatches(split, transforms, training=True, resized_inputs=resized)
    scoring = ImageBatches(split, transforms, training=False)
    for epoch, side in ((0, 16), (4, 24), (5, 32)):
        tickets = [10 * epoch + i for i in range(4)]
        inputs = training.model_inputs(training.__getitems__(tickets), CPU)
        assert inputs["pixel_values"].shape == (4, 3, side, side)
        assert ("interpolate_pos_encoding" in inputs) == (side != 32)
        assert (
            scoring.model_inputs(scoring.__getitems__(tickets), CPU)["pixel_values"].shape[-1] == 32
        )


# ---- models ----


@pytest.mark.parametrize(
    "family", ["vit", "deit", "dinov2", "convnext", "resnet", "efficientnet", "timm", "timm_vit"]
)
def test_families_take_smaller_images(family):
    model = tiny_models.build(family)
    arguments = check_schedule(model, [16, 32], 32)
    assert arguments == ({"interpolate_pos_encoding": True} if family in ("vit", "deit") else {})
    assert model(pixel_values=torch.zeros(2, 3, 16, 16), **arguments).logits.shape == (2, 10)


def test_lora_takes_smaller_images():
    model = get_peft_model(
        tiny_models.build("vit"),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]),
    )
    arguments = check_schedule(model, [16, 32], 32)
    assert arguments == {"interpolate_pos_encoding": True}
    assert model(pixel_values=torch.zeros(2, 3, 16, 16), **arguments).logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("family", "sides", "about"),
    [
        ("vit", [20, 32], "20 is no multiple of vit's patch of 8; use 16"),
        ("vit", [16, 24], "the last stage must be the model's image size of 32, got 24"),
        ("swin", [8, 32], "swin"),
    ],
)
def test_sides_that_a_model_does_not_take_are_refused(family, sides, about):
    with pytest.raises(UserError) as caught:
        check_schedule(tiny_models.build(family), sides, 32)
    message = str(caught.value)
    assert message.startswith("image_size_schedule: ") and about in message and "\n" not in message


def test_a_fixed_timm_transformer_is_refused():
    model = tiny_models.build("timm_vit")
    model.timm_model.patch_embed.strict_img_size = True  # as most of timm's are
    with pytest.raises(UserError, match="image_size_schedule: timm_wrapper doesn't take 16 px"):
        check_schedule(model, [16, 32], 32)


def test_position_embeddings_are_the_librarys_resampled_and_learn_at_full_size():
    model = tiny_models.build("vit")
    positions = model.vit.embeddings.position_embeddings
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16)} | check_schedule(model, [16, 32], 32)
    caught = []
    model.vit.embeddings.register_forward_hook(lambda _, __, output: caught.append(output))
    model(**inputs).logits.square().sum().backward()
    embeddings = model.vit.embeddings
    patches = embeddings.patch_embeddings(inputs["pixel_values"])
    tokens = torch.cat([embeddings.cls_token.expand(2, -1, -1), patches], 1)
    resampled = embeddings.interpolate_pos_encoding(tokens, 16, 16)
    assert resampled.shape == (1, 1 + 4, 32)
    torch.testing.assert_close(caught[0], tokens + resampled)
    assert positions.shape == (1, 1 + 16, 32) and positions.grad.shape == positions.shape
    assert (positions.grad != 0).any(-1).all()  # every place of the full grid


# ---- runs ----


@pytest.mark.parametrize("family", ["vit", "resnet", "efficientnet"])
def test_a_run_with_everything_on(family, tiny, train, sides):
    run = train("run", tiny(family), **ALL)
    assert set(sides) == {(0, 16), (1, 24), (2, 32)} and len(sides) == 15
    assert run.metrics["global_step"] == 15 and run.metrics["image_size"] == 32
    losses = [entry["loss"] for entry in run.metrics["history"] if "loss" in entry]
    assert np.isfinite(losses).all()
    before, after = load_file(tiny(family) / "model.safetensors"), saved_weights(run)
    shared = [name for name in before if name in after]
    assert all(after[name].shape == before[name].shape for name in shared)
    assert any(not torch.equal(after[name], before[name]) for name in shared)


def test_a_run_with_lora_at_changing_sizes(tiny, train, sides):
    train("run", tiny("vit"), method="lora", **ALL)
    assert set(sides) == {(0, 16), (1, 24), (2, 32)}


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_is_the_same_to_the_bit(step, tiny, train):
    """Stopped in the first epoch, so that the images grow after the resume, and in the second; in
    the middle of a step.
    """
    keys = CHECKPOINT_EVERY_3 | ALL
    keys |= {"image_size_schedule": [[0, 16], [1, 32]], "num_train_epochs": 2}
    keys |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = train("whole", tiny("vit"), **keys)
    with stopped_in_step(2 * step):
        train("stopped", tiny("vit"), **keys)
    assert_same_run(whole, train("stopped", tiny("vit"), **keys))


def test_accumulated_mixed_batches_are_the_big_batch(tiny, train):
    keys = {name: value for name, value in ALL.items() if name != "image_size_schedule"}
    keys |= {
        "optim": "sgd",
        "learning_rate": 0.05,
        "validation_fraction": 0,
        "num_train_epochs": 1,
        "max_train_samples": 32,
    }
    big = train("big", tiny("vit"), **keys, per_device_train_batch_size=16)
    keys |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    small = train("small", tiny("vit"), **keys)
    assert largest_difference(saved_weights(big), saved_weights(small)) < 1e-6


def test_features_of_each_augmentation_are_cached_apart(tiny, train, caplog):
    keys = {"method": "linear", "feature_views": 3}
    erased_keys = keys | {"random_erasing": 0.5}
    policy_keys = erased_keys | {"auto_augment": "trivialaugment"}
    with caplog.at_level("INFO", "hf_cifar"):
        plain = train("plain", tiny("vit"), **keys)
        erased = train("erased", tiny("vit"), **erased_keys)
        policy = train("policy", tiny("vit"), **policy_keys)
        assert "features: 3 x" not in caplog.text  # none came from the cache
        train("policy", tiny("vit"), fresh=True, **policy_keys)
        assert "features: 3 x" in caplog.text
    heads = [saved_weights(run)["classifier.weight"] for run in (plain, erased, policy)]
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("lines", "about"),
    [
        ("image_size_schedule: []", "must be [[epoch, pixels], ...], got []"),
        ("image_size_schedule: [[0, 32, 1]]", "must be [[epoch, pixels], ...], got [[0, 32, 1]]"),
        ("image_size_schedule: [[1, 32]]", "epochs must start at 0 and rise, got [1]"),
        ("image_size_schedule: [[0, 16], [0, 32]]", "epochs must start at 0 and rise, got [0, 0]"),
        ("image_size_schedule: [[0, 4], [1, 32]]", "pixels must be 8 to 4096, got [4, 32]"),
        (
            "image_size_schedule: [[0, 16], [1, 24]]\nimage_size: 32",
            "the last size must be image_size (32), got 24",
        ),
        (
            "image_size_schedule: [[0, 16], [3, 32]]",
            "the last size begins in epoch 3, but num_train_epochs is 3",
        ),
        (
            "image_size_schedule: [[0, 16], [1, 32]]\nmethod: linear",
            "changes images in every epoch",
        ),
        ("image_size_schedule: 32", "must be a list"),
        ("image_size_schedule: [[0, big]]", "must be a list"),
    ],
)
def test_bad_schedules_are_refused_in_one_line(tmp_path, lines, about):
    path = tmp_path / "recipe.yaml"
    path.write_text(lines + "\n")
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    message = str(caught.value)
    assert (
        message.startswith(f"{path}: image_size_schedule: ")
        and about in message
        and "\n" not in message
    )


def test_a_schedule_that_misses_the_models_own_size_is_refused(tiny, train):
    with pytest.raises(
        UserError,
        match="image_size_schedule: the last stage must be the model's image size of 32, got 24",
    ):
        train("run", tiny("vit"), image_size_schedule=[[0, 16], [1, 24]])
