"""Many small operations as a few kernels.

A batch goes through a hundred operations, each of which a GPU has to be told to launch. In a small
model's step that takes longer than the work itself. `torch.compile`'s backend fuses them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

log = logging.getLogger(__name__)
# Inductor would work out the constants of `counter_rng` in Python's integers, which do not wrap.
OPTIONS: dict[str, Any] = {"constant_and_index_propagation": False}

Finish = Callable[[dict[str, Any], int | None], tuple[torch.Tensor, ...]]


class Fused:
    """Calls a function of tensors as one compiled graph for each set of shapes.

    Where a graph can't be compiled (Triton needs a C compiler, for example), a warning says why,
    and the function itself runs from then on.

    function: of a batch, whose leaves are all tensors, and a size; it must not read a value.
    """

    def __init__(self, function: Finish) -> None:
        self.function = function
        self.compiles = True
        self.graphs: dict[Any, Callable[..., tuple[torch.Tensor, ...]]] = {}

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any], size: int | None) -> tuple[torch.Tensor, ...]:
        leaves, structure = pytree.tree_flatten(batch)
        shapes = tuple((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves)
        key = structure, size, shapes
        if key not in self.graphs:
            self.graphs[key] = self._graph(leaves, structure, size)
        return self.graphs[key](*leaves)

    def _graph(
        self, leaves: list[torch.Tensor], structure: pytree.TreeSpec, size: int | None
    ) -> Callable[..., tuple[torch.Tensor, ...]]:
        def plain(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.function(pytree.tree_unflatten(leaves, structure), size)

        if self.compiles:
            try:
                compiled = compile_graph(plain, leaves)
                compiled(*leaves)  # kernels are built at the first call
                return compiled
            except Exception as error:  # each part of the compiler fails in its own way
                self.compiles = False
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                log.warning("augmentation runs operation by operation: %s", reason[:200])
        return plain


def compile_graph(
    function: Callable[..., tuple[torch.Tensor, ...]], leaves: list[torch.Tensor]
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Return the function compiled for tensors of these shapes.

    The operations of a real call are compiled, whatever Python code they come from.
    """
    from torch._inductor import compile as compile_operations
    from torch.fx.experimental.proxy_tensor import make_fx

    graph: Any = make_fx(function)(*leaves)
    inputs: list[Any] = list(leaves)
    compiled: Any = compile_operations(graph, inputs, options=OPTIONS)
    return compiled
