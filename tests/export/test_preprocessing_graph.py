"""The graph's resize, crop and normalisation against the image processor's."""

import numpy as np
import PIL.Image
import pytest
from transformers import BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from hf_cifar.errors import UserError
from hf_cifar.export.preprocessing_graph import write_preprocessing_graph
from hf_cifar.export.session import logits_of, open_session

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"height": 96, "width": 96}
PROCESSORS = {
    "bicubic": ViTImageProcessor(size=SQUARE, resample=3, **IMAGENET),
    "bilinear": ViTImageProcessor(size=SQUARE, resample=2),
    "crop": BitImageProcessor(size={"shortest_edge": 110}, crop_size=SQUARE, **IMAGENET),
    "not normalised": ViTImageProcessor(size=SQUARE, resample=3, do_normalize=False),
}


@pytest.fixture
def pixels_as_logits(tmp_path):
    """A model file whose logits are its pixels."""
    from onnx import TensorProto, helper, save

    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["logits"])],
        "identity",
        [helper.make_tensor_value_info("pixel_values", kind, ["batch_size", 3, 96, 96])],
        [helper.make_tensor_value_info("logits", kind, ["batch_size", 3, 96, 96])],
    )
    imports = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "id.onnx")
    return tmp_path / "id.onnx"


def photograph(height: int, width: int) -> np.ndarray:
    """Return uint8 [H, W, 3]: soft shapes with grain."""
    random = np.random.default_rng(height)
    coarse = random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    soft = np.asarray(PIL.Image.fromarray(coarse).resize((width, height), 3), np.int64)
    return np.clip(soft + random.integers(-20, 20, soft.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor(name, pixels_as_logits, tmp_path):
    processor = PROCESSORS[name]
    write_preprocessing_graph(pixels_as_logits, processor, tmp_path / "whole.onnx")
    session = open_session(tmp_path / "whole.onnx")
    (entry,) = session.get_inputs()
    assert (entry.name, entry.type) == ("image", "tensor(uint8)")
    step = 1 / 255 / (min(processor.image_std) if processor.do_normalize else 1)
    for height, width in ((97, 33), (96, 96), (900, 1600), (1001, 313)):
        image = photograph(height, width)
        expected = processor(images=PIL.Image.fromarray(image), return_tensors="pt")
        difference = np.abs(logits_of(session, image[None]) - expected["pixel_values"].numpy())
        assert difference.max() < 2.1 * step and (difference > 0.5 * step).mean() < 0.02
    batch = np.stack([photograph(60, 80), photograph(60, 80)[::-1]])
    assert np.array_equal(
        logits_of(session, batch),
        np.concatenate([logits_of(session, image[None]) for image in batch]),
    )


def test_a_processor_that_does_something_else_is_refused(pixels_as_logits, tmp_path):
    # Below 384 px this one resizes to more than it says, and crops.
    other = ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.5, **IMAGENET)
    for processor in (other, ViTImageProcessor(size=SQUARE, resample=0)):
        with pytest.raises(UserError, match="--with-preprocessing"):
            write_preprocessing_graph(pixels_as_logits, processor, tmp_path / "whole.onnx")
    assert not (tmp_path / "whole.onnx").exists()
