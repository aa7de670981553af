"""A graph that takes pictures of any size: resize, crop, rescale and normalise stand before the
model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_cifar.errors import UserError
from hf_cifar.export.session import open_session
from hf_cifar.export.to_onnx import BATCH, INPUT, OPSET

IMAGE = "image"
MODES = {2: "linear", 3: "cubic"}  # by PIL's number of the filter
PREFIX = "preprocessing_"  # of names, so that they differ from those of the model's graph
# Height and width of pictures that the graph is compared on with the image processor: smaller and
# larger than any model's input, wide and tall.
PROBES = ((32, 32), (48, 40), (211, 613), (700, 450))
# onnxruntime rounds the integer weights of a resize where PIL does, and torch elsewhere, so a pixel
# may differ by a step or two of 255. Another filter or crop differs by far more.
MOST_STEPS = 2.5


def write_preprocessing_graph(model: Path, processor: Any, out: Path) -> None:
    """Write the graph of a file with what its image processor does to a picture before it.

    The input `image` is uint8 [batch, height, width, 3], RGB; the pictures of a batch have one
    size. processor: of transformers, with the torchvision backend. Raises UserError for a processor
    that does more than resize, crop the centre, rescale and normalise.
    """
    import onnx

    before = _preprocessing(processor.to_dict(), type(processor).__name__)
    _check_against(processor, before)
    after = onnx.load(model)
    before.ir_version = after.ir_version
    merged = onnx.compose.merge_models(before, after, io_map=[("pixels", INPUT)])
    onnx.save(merged, out)


def _preprocessing(settings: dict[str, Any], name: str) -> Any:
    """Return the ONNX model of a processor's steps: uint8 `image` [B, H, W, 3] to float32 `pixels`
    [B, 3, S, S].
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants = [], []

    def constant(label: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, f"{PREFIX}{label}"))
        return f"{PREFIX}{label}"

    def integers(label: str, *values: int) -> str:
        return constant(label, np.array(values, np.int64))

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        node_name = f"{PREFIX}{output}"
        nodes.append(helper.make_node(operator, inputs, [output], node_name, **attributes))
        return output

    # In place of a Transpose, which onnxruntime 1.32 pushes behind a bilinear Resize and loses the
    # sizes on the way ("Number of elements of input 'sizes' (0)").
    colours = ["red", "green", "blue"]
    first_axis, last_axis = integers("first_axis", 1), integers("last_axis", 3)
    nodes.append(helper.make_node("Split", [IMAGE], colours, axis=3, num_outputs=3))
    for colour in colours:
        add("Squeeze", [colour, last_axis], f"{colour}_plane")
        add("Unsqueeze", [f"{colour}_plane", first_axis], f"{colour}_channel")
    pixels = add("Concat", [f"{colour}_channel" for colour in colours], "channels_first", axis=1)
    if settings.get("do_resize"):
        size, mode = settings.get("size") or {}, MODES.get(settings.get("resample", 0))
        if mode is None:
            raise UserError(
                f"--with-preprocessing: the filter of {name} (resample {settings.get('resample')})"
                " is neither bilinear nor bicubic; leave the option out"
            )
        if size.get("shortest_edge"):
            # The other side is the integer part of edge * long / short, as in transformers.
            add("Shape", [pixels], "image_sides", start=2)
            add("ReduceMin", ["image_sides"], "short_side", keepdims=1)
            edge = integers("edge", size["shortest_edge"])
            add("Mul", ["image_sides", edge], "enlarged_sides")
            target = add("Div", ["enlarged_sides", "short_side"], "resized_sides")
        elif size.get("height") and size.get("width"):
            target = integers("resized_sides", size["height"], size["width"])
        else:
            raise UserError(
                f"--with-preprocessing: {name} resizes to {size}, which is no fixed size and no"
                " shortest edge; leave the option out"
            )
        # On uint8 onnxruntime computes with PIL's integers. Pixels beyond the border have no weight
        # in PIL and torch either, and -0.5 is their cubic filter.
        pixels = add(
            "Resize",
            [pixels, "", "", target],
            "resized",
            mode=mode,
            antialias=1,
            axes=[2, 3],
            exclude_outside=1,
            cubic_coeff_a=-0.5,
        )
    if settings.get("do_center_crop"):
        crop = settings["crop_size"]
        sides = integers("crop", crop["height"], crop["width"])
        add("Shape", [pixels], "sides_before_crop", start=2)
        add("Sub", ["sides_before_crop", sides], "margins")
        add("Div", ["margins", integers("two", 2)], "crop_begins")
        add("Add", ["crop_begins", sides], "crop_ends")
        axes = integers("axes", 2, 3)
        pixels = add("Slice", [pixels, "crop_begins", "crop_ends", axes], "cropped")
    pixels = add("Cast", [pixels], "floats", to=TensorProto.FLOAT)
    factor = settings["rescale_factor"] if settings.get("do_rescale") else 1.0

    def scaled(label: str, values: Any) -> str:
        # As transformers does, which scales mean and deviation in place of the pixels.
        three = np.broadcast_to(np.array(values, np.float32) * np.float32(1 / factor), 3)
        return constant(label, three.reshape(3, 1, 1).copy())

    normalizes = settings.get("do_normalize")
    mean = scaled("mean", settings["image_mean"] if normalizes else 0)
    deviation = scaled("deviation", settings["image_std"] if normalizes else 1)
    add("Sub", [pixels, mean], "centred")
    add("Div", ["centred", deviation], "pixels")
    shape: list[str | int | None] = [BATCH, "height", "width", 3]
    graph = helper.make_graph(
        nodes,
        "classifier_with_preprocessing",
        [helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [BATCH, 3, None, None])],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name=""
    )


def _check_against(processor: Any, before: Any) -> None:
    """Raise UserError unless the steps give what the processor gives, on pictures of some sizes."""
    session = open_session(before.SerializeToString())
    step = 1 / (255 * min(getattr(processor, "image_std", None) or [1.0]))
    for height, width in PROBES:
        image = _smooth_picture(height, width)
        expected = processor(images=image, return_tensors="pt")["pixel_values"].numpy()
        pixels = session.run(["pixels"], {IMAGE: image[None]})[0]
        same_shape = pixels.shape == expected.shape
        difference = float(np.abs(pixels - expected).max()) if same_shape else math.inf
        if difference > MOST_STEPS * step:
            raise UserError(
                f"--with-preprocessing: {type(processor).__name__} does something else than resize,"
                " crop the centre, rescale and normalise; leave the option out"
            )


def _smooth_picture(height: int, width: int) -> np.ndarray:
    """Return uint8 [H, W, 3], a picture of soft blobs."""
    coarse = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(
        coarse, (height, width), mode="bicubic", align_corners=False
    )
    return (picture[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous().numpy()
