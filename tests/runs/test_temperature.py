"""The temperature is folded into the saved head, and mirror images are averaged."""

import json

import numpy as np
import pytest
import torch
from helpers.runs import held_out_images, pipeline_probabilities, saved_weights
from safetensors.torch import load_file


def mean_nll(probabilities, labels):
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("method", ["full", "lora", "linear"])
def test_the_temperature_is_in_the_saved_head(method, tiny, train):
    keys = {
        "method": method,
        "validation_fraction": 0.4,
        "num_train_epochs": 4,
        "learning_rate": 0.02,
        "tta": "flip",
    }
    plain = train("plain", tiny("vit"), **keys)
    scaled = train("scaled", tiny("vit"), **keys, temperature_scaling=True)
    before, after = saved_weights(plain), saved_weights(scaled)
    temperature = scaled.metrics["temperature"]
    assert temperature != 1
    for name in before:
        scale = temperature if name.startswith("classifier") else 1
        torch.testing.assert_close(after[name] * scale, before[name], atol=1e-6, rtol=1e-5)
    metrics, unscaled = scaled.metrics, plain.metrics
    assert metrics["validation_nll"] <= metrics["validation_nll_before_temperature"]
    for figure in ("validation_nll", "test_ece"):
        assert metrics[f"{figure}_before_temperature"] == pytest.approx(unscaled[figure])
    assert metrics["test_accuracy"] == unscaled["test_accuracy"]

    images, labels = held_out_images(scaled)
    answers = pipeline_probabilities(scaled.path, images)
    assert mean_nll(answers, labels) == pytest.approx(metrics["test_nll"], abs=1e-4)
    mirrored = pipeline_probabilities(scaled.path, [image.transpose(0) for image in images])
    both = (answers + mirrored) / 2
    assert (both.argmax(1) == labels).mean() == metrics["test_flip_accuracy"]
    assert mean_nll(both, labels) == pytest.approx(metrics["test_flip_nll"], abs=1e-4)
    card = (scaled.path / "README.md").read_text()
    assert "temperature" in card and "mirror" in card
    if method == "lora":
        adapter = load_file(scaled.path / "adapter" / "adapter_model.safetensors")
        saved = next(t for name, t in adapter.items() if name.endswith("classifier.weight"))
        torch.testing.assert_close(saved, after["classifier.weight"])
    assert "flipped" not in json.dumps(sorted(metrics))
