"""Graphs of every family: they answer as the model does, at any batch, and name no folder."""

import numpy as np
import pytest
import torch
import transformers
from helpers import tiny_models
from packaging.version import Version

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from hf_cifar.errors import UserError
from hf_cifar.export.session import logits_of, open_session
from hf_cifar.export.to_onnx import to_onnx


@pytest.mark.parametrize(
    "family",
    [
        family if family in ("resnet", "vit") else pytest.param(family, marks=pytest.mark.slow)
        for family in tiny_models.FAMILIES
    ],
)
def test_a_graph_answers_as_its_model_at_any_batch(family, tmp_path):
    model = tiny_models.build(family)
    exported = to_onnx(model, tiny_models.SIZE, family)
    exported.save(tmp_path / "model.onnx")
    if Version(transformers.__version__) >= Version("5.24"):
        assert exported.exporter == "transformers.exporters"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = open_session(tmp_path / "model.onnx")
    assert [one.shape for one in session.get_inputs()] == [["batch_size", 3, 32, 32]]
    for count in (1, 2, 7, 990):
        images = torch.randn(count, 3, tiny_models.SIZE, tiny_models.SIZE)
        with torch.inference_mode():
            expected = model(pixel_values=images).logits.numpy()
        answers = logits_of(session, images.numpy())
        assert answers.shape == (count, 10) and np.abs(answers - expected).max() < 1e-4
        assert np.array_equal(answers.argmax(1), expected.argmax(1))
    content = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in content and b".py" not in content


class Outputs:
    def __init__(self, logits):
        self.logits = logits


class TakesAnotherPathForBrightImages(torch.nn.Module):
    """What no exporter can write down: which operations it runs depends on the pixels."""

    config = type("Config", (), {"model_type": "bright_or_dark"})()

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 10), torch.nn.Linear(3, 10)])

    def forward(self, pixel_values):
        bright = int(pixel_values.mean().item() > 0)
        return Outputs(self.layers[bright](pixel_values.mean((2, 3))))


def test_a_family_that_cannot_be_exported_is_named():
    with pytest.raises(UserError) as refusal:
        to_onnx(TakesAnotherPathForBrightImages().eval(), 32, "mine")
    message = str(refusal.value)
    assert "the family bright_or_dark can't be exported" in message
    assert "transformers.exporters: " in message and "torch.onnx.export: " in message
    assert len(message) < 500 and "\n" not in message
