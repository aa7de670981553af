"""Graphs with 8-bit weights and activations, and the choice between the ways to make them."""

from __future__ import annotations

import contextlib
import io
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
    dynamic, with ranges taken from each picture, which suits transformers. calibration: how a
    static one takes a range from the values that were seen; None for a dynamic one.
    """

    kind: str
    calibration: str | None

    def __str__(self) -> str:
        return f"{self.kind} ({self.calibration})" if self.calibration else self.kind


# Smallest to largest value, the range that most activations fill; and one that leaves out the
# rarest values, where a few of them are so large that nothing remains for the others.
STATIC, DYNAMIC = Recipe8Bit("static", "minmax"), Recipe8Bit("dynamic", None)
STATIC_WITHOUT_OUTLIERS = Recipe8Bit("static", "percentile")
PERCENTILE = 99.99


def quantize(graph: Path, recipe: Recipe8Bit, pictures: Sequence[np.ndarray], out: Path) -> None:
    """Write the graph with 8-bit weights (one scale a channel) and activations.

    pictures: float32 [1, 3, S, S] each, of the training data, which a static recipe measures the
    ranges of activations on.
    """
    import onnxruntime.quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    root = logging.getLogger()
    level = root.level
    with (
        tempfile.TemporaryDirectory(prefix="hf-cifar-onnx-") as folder,
        contextlib.redirect_stdout(io.StringIO()),  # its histograms print
        warnings.catch_warnings(),
    ):
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
            methods = {
                "minmax": ort.CalibrationMethod.MinMax,
                "percentile": ort.CalibrationMethod.Percentile,
            }
            ort.quantize_static(
                prepared,
                out,
                _Pictures(pictures),
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                calibrate_method=methods[recipe.calibration or ""],
                extra_options={"CalibPercentile": PERCENTILE},
            )
        finally:
            root.setLevel(level)


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
