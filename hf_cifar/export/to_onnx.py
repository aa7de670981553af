"""An image classifier as an ONNX graph that takes batches of any size."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_cifar.errors import UserError
from hf_cifar.export.session import logits_of, open_session
from hf_cifar.text import visible

log = logging.getLogger(__name__)
OPSET = 18  # the first whose Resize can antialias, which the graph with preprocessing needs
INPUT, OUTPUT = "pixel_values", "logits"  # as transformers.js names them
BATCH = "batch_size"
# A sample of one image silently fixes the batch of the graph, although it is declared dynamic.
SAMPLE_IMAGES = 2
PROVED_BATCHES = (1, 2, 7)
TOLERANCE = 1e-3  # of logits, relative to the largest; a wrong graph is off by far more
MOST_BYTES = 2_000_000_000  # a protobuf file holds 2 GiB


@dataclass(frozen=True)
class ExportedGraph:
    """A model as a graph in memory.

    graph: an `onnx_ir.Model`. exporter: the library that made it. reason: why that one.
    """

    graph: Any
    exporter: str
    reason: str

    def save(self, path: Path) -> None:
        """Write the graph and its weights into one file."""
        import onnx_ir

        onnx_ir.save(self.graph, path)


def check_packages() -> None:
    """Raise UserError unless the packages of the extra `export` are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"export: needs the package {error.name}; install it with"
            " `pip install 'hf-cifar[export]'`"
        ) from None


def to_onnx(model: nn.Module, image_size: int, name: str) -> ExportedGraph:
    """Return a classifier as a graph: float32 pixel_values [batch, 3, S, S] to logits [batch, C].

    The exporter of transformers is tried first, because it knows how to change its own models so
    that every operation has a counterpart in ONNX. A graph counts only if it answers as the model
    does at batches of 1, 2 and 7.

    model: on the CPU, in evaluation mode; its config names the family. image_size: S. name: what
    messages call the model. Raises UserError for a family that can't be exported.
    """
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > MOST_BYTES:
        raise UserError(
            f"{name}: its weights take {size / 1e9:.1f} GB, and one ONNX file holds 2 GB at most;"
            " export a smaller model"
        )
    failures = []
    for exporter, export in EXPORTERS.items():
        try:
            with _quiet():
                graph = export(model, torch.zeros(SAMPLE_IMAGES, 3, image_size, image_size))
                _strip(graph)
            _check_batches(graph, model, image_size)
        except Exception as error:  # exporters fail in each family's own way
            failures.append(f"{exporter}: {_first_line(error)}")
            continue
        reason = "; ".join(failures) if failures else "it takes this model"
        log.info("%s: exported by %s (%s), opset %d", name, exporter, reason, OPSET)
        return ExportedGraph(graph, exporter, reason)
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    raise UserError(
        f"{name}: a model of the family {family} can't be exported to ONNX ({'; '.join(failures)})"
    )


def _export_with_transformers(model: Any, images: torch.Tensor) -> Any:
    from transformers.exporters import OnnxConfig, OnnxExporter

    shapes = {INPUT: {0: torch.export.Dim(BATCH)}}
    settings = OnnxConfig(dynamic_shapes=shapes, opset_version=OPSET)
    return OnnxExporter().export(model, {INPUT: images}, config=settings).program


class _Logits(nn.Module):
    """A model that answers with a tensor, as torch's exporter needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


def _export_with_torch(model: nn.Module, images: torch.Tensor) -> Any:
    program = torch.onnx.export(
        _Logits(model).eval(),
        (images,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: {0: torch.export.Dim(BATCH)}},
        verbose=False,
    )
    assert program is not None
    return program.model


EXPORTERS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "transformers.exporters": _export_with_transformers,
    "torch.onnx.export": _export_with_torch,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters print and warn of away from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _strip(graph: Any) -> None:
    """Remove what the exporters note about each operation, with absolute paths of this machine, and
    give the batch its name.
    """
    import onnx_ir

    graph.metadata_props.clear()
    graph.doc_string = None
    values = [*graph.graph.inputs, *graph.graph.initializers.values()]
    symbol = graph.graph.inputs[0].shape[0]
    for function in (graph.graph, *graph.functions.values()):
        function.metadata_props.clear()
        function.doc_string = None
        for node in function:
            node.metadata_props.clear()
            node.doc_string = None
            values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
        for axis, dimension in enumerate(value.shape or ()):
            if isinstance(dimension, onnx_ir.SymbolicDim) and dimension == symbol:
                value.shape[axis] = onnx_ir.SymbolicDim(BATCH)


def _check_batches(graph: Any, model: nn.Module, image_size: int) -> None:
    """Raise ValueError unless the graph answers as the model does, for batches of several sizes."""
    import onnx_ir

    session = open_session(onnx_ir.to_proto(graph).SerializeToString())
    random = torch.Generator().manual_seed(0)
    for count in PROVED_BATCHES:
        images = torch.randn(count, 3, image_size, image_size, generator=random)
        with torch.inference_mode():
            expected = model(pixel_values=images).logits.numpy()
        answers = logits_of(session, images.numpy())
        if answers.shape != expected.shape:
            raise ValueError(f"its graph answers {count} images with shape {answers.shape}")
        difference = float(np.abs(answers - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ValueError(f"its graph's logits are off by {difference:.3g} at batch {count}")


def _first_line(error: Exception) -> str:
    """Return the type and the first line of an exception's cause, without colours of a terminal."""
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines() or [""]
    return visible(f"{type(cause).__name__}: {lines[0]}", 160)
