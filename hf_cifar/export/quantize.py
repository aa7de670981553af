"""Graphs with 8-bit weights and activations, and the choice between the ways to make them."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_cifar.export.to_onnx import INPUT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe8Bit:
    """A way to make an 8-bit graph.

    kind: static, with the ranges of activations measured beforehand, which suits convolutions; or
    dynamic, with ranges taken from each picture, which suits transformers. float_share: of the
    convolutions, from the first on, that stay float32.
    """

    kind: str
    float_share: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}, first third in float32" if self.float_share else self.kind


# Ways of a later round are tried where none of the rounds before keeps the accuracy. The first
# third of EfficientNet-Lite0's convolutions holds under 2 % of its weights and causes most of the
# loss: in float32 it lets 98.5 % of 200 images keep their first answer, 95.5 % in 8 bits.
ROUNDS = (
    (Recipe8Bit("static"), Recipe8Bit("dynamic")),
    (Recipe8Bit("static", float_share=1 / 3),),
)


def quantize(graph: Path, recipe: Recipe8Bit, pictures: Sequence[np.ndarray], out: Path) -> None:
    """Write the graph with 8-bit weights (one scale a channel) and activations.

    pictures: float32 [1, 3, S, S] each, of the training data, which a static recipe measures the
    ranges of activations on.
    """
    import onnxruntime.quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory(prefix="hf-cifar-onnx-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)  # its warnings name no logger of their own
        try:
            prepared = Path(folder, "prepared.onnx")
            quant_pre_process(graph, prepared, skip_symbolic_shape=True)
            if recipe.kind == "dynamic":
                ort.quantize_dynamic(
                    prepared, out, per_channel=True, weight_type=ort.QuantType.QInt8
                )
                return
            ort.quantize_static(
                prepared,
                out,
                _Pictures(pictures),
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                nodes_to_exclude=_first_convolutions(prepared, recipe.float_share),
            )
        finally:
            root.setLevel(level)


def _first_convolutions(graph: Path, share: float) -> list[str]:
    """Return the names of the first convolutions of a file, `share` of all."""
    import onnx

    nodes = onnx.load(graph).graph.node
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    return convolutions[: round(share * len(convolutions))]


class _Pictures:
    """Pictures as onnxruntime's calibration asks for them."""

    def __init__(self, pictures: Sequence[np.ndarray]) -> None:
        self._inputs: Iterator[dict[str, Any]] = ({INPUT: picture} for picture in pictures)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)


def write_half(graph: Path, out: Path) -> None:
    """Write the graph with float16 weights and operations; it takes and gives float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():  # of values too small for float16
        warnings.simplefilter("ignore")
        onnx.save(convert_float_to_float16(onnx.load(graph), keep_io_types=True), out)
