"""The frozen lower part of a network, found by watching it run; training can start above it.

What runs before the first block that trains is found on a probe; a second probe checks that
training may start there. Both hold for any family, since no module is known by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils import _pytree as pytree

from hf_cifar.models.structure import blocks, head

STORED = {  # how a dtype is stored; numpy has no bfloat16
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.int16,
}
# Largest relative difference of a gradient, by norm, that rounding explains: a bfloat16 number has
# 8 bits (0.4 %), and sums of them in another order differ by a few of its last bits.
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class CannotCache(Exception):
    """The lower blocks have to run at every step. The message is the reason."""


class _BlockReached(Exception):
    """Stops a forward pass at the first block that trains; carries the input of that block."""


class FrozenLowerBlocks:
    """Everything of `model` that runs before its first block that trains.

    After `install`, the model takes `hidden` in place of `pixel_values`: the modules below the
    block return what they returned on a probe, which costs nothing, and the block gets `hidden`.
    Called with `pixel_values` it computes what it always did. Weights and their names stay.

    autocast: the dtype that the model runs in by autocast, or None. channels_last: memory layout of
    the images.

    shape, dtype: of the hidden state of one image, as it lies in memory. order: which dimension of
    the model's tensor each dimension in memory is.

    Raises CannotCache where something below trains or is random, or where outputs or gradients
    would not be the same.
    """

    def __init__(
        self, model: Any, image_size: int, *, autocast: torch.dtype | None, channels_last: bool
    ) -> None:
        self.model, self.image_size = model, image_size
        self.autocast, self.channels_last = autocast, channels_last
        self.device = next(model.parameters()).device
        model_blocks = blocks(model)
        if not model_blocks:
            raise CannotCache("this model has no blocks")
        training = [
            position
            for position, (_, block) in enumerate(model_blocks)
            if any(parameter.requires_grad for parameter in block.parameters())
        ]
        if training[:1] == [0]:
            raise CannotCache("the first block trains")
        self.name, self.block = model_blocks[training[0] if training else -1]
        self.hidden: torch.Tensor | None = None
        self.argument: int | str = 0  # which of the block's arguments the hidden state is
        self.hooks: list[Any] = []
        self.stand_ins: list[tuple[Any, Callable[[int], Any]]] = []
        self.replaced: list[tuple[Any, Callable | None]] = []  # modules and their own `forward`
        self.blank = torch.zeros((), device=self.device)
        mode = model.training
        devices = [self.device] if self.device.type == "cuda" else []
        # Training must draw what it draws without the probe.
        with torch.random.fork_rng(devices, device_type="cuda"):
            try:
                self._find_stand_ins()
                self._check()
            except (
                RuntimeError,
                TypeError,
                ValueError,
                IndexError,
                KeyError,
                AttributeError,
            ) as error:
                reason = str(error).splitlines()[0][:120]
                raise CannotCache(f"{type(error).__name__} on a probe: {reason}") from None
            finally:
                self.remove()
                model.train(mode)

    # ---- finding what runs before the block ----

    def _probe_pixels(self, count: int) -> torch.Tensor:
        shape = count, 3, self.image_size, self.image_size
        generator = torch.Generator().manual_seed(count)
        pixels = torch.randn(shape, generator=generator).to(self.device)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pixels

    def _run(self, **inputs: torch.Tensor) -> None:
        enabled = self.autocast is not None
        with torch.autocast(self.device.type, self.autocast, enabled=enabled):
            self.model(**inputs)

    def _watch(
        self, count: int
    ) -> tuple[dict[nn.Module, list[Any]], list[nn.Module], set[nn.Module]]:
        """Run `count` images. Return the outermost modules that end before the block begins, with
        what they returned at each call; every module that begins before it; and every module that
        begins later.
        """
        ended: list[tuple[nn.Module, Any]] = []
        ended_at_start: list[int] = []  # for each running module, how many had ended by then
        before: list[nn.Module] = []
        later: set[nn.Module] = set()

        def on_start(module: nn.Module, _: Any) -> None:
            if later or module is self.block:
                later.add(module)
            else:
                before.append(module)
                ended_at_start.append(len(ended))

        def on_end(module: nn.Module, _: Any, output: Any) -> None:
            if not later:
                del ended[ended_at_start.pop() :]  # modules inside this one
                ended.append((module, output))

        hooks = register_module_forward_pre_hook(on_start), register_module_forward_hook(on_end)
        try:
            with torch.no_grad():
                self._run(pixel_values=self._probe_pixels(count))
        finally:
            for hook in hooks:
                hook.remove()
        outputs: dict[nn.Module, list[Any]] = {}
        for module, output in ended:
            outputs.setdefault(module, []).append(output)
        return outputs, before, later

    def _find_stand_ins(self) -> None:
        """Note each module below the block and a function that makes its output for n images."""
        self.model.eval()
        (for_two, before, later), (for_three, _, _) = self._watch(2), self._watch(3)
        names = {module: name for name, module in self.model.named_modules()}
        for module in before:
            parameters = module.named_parameters(prefix=names[module], recurse=False)
            if trained := [name for name, p in parameters if p.requires_grad]:
                raise CannotCache(f"{trained[0]} trains and comes before the first block that does")
        for module, outputs in for_two.items():
            if module in later or len(outputs) > 1 or module not in for_three:
                continue  # it keeps running, on what stands in for its input
            stand_in = _output_for_rows(outputs[0], for_three[module][0])
            if stand_in is not None:
                self.stand_ins.append((module, stand_in))

    def _check(self) -> None:
        """Check that hidden states are the same in training as in evaluation, and that they lead to
        the same outputs and gradients.
        """
        pixels = self._probe_pixels(3)
        self.model.train()
        in_training = self.compute(pixels)
        self.model.eval()
        hidden = self.compute(pixels)
        if not torch.equal(in_training, hidden):
            raise CannotCache(
                "what is frozen is random in training (dropout or stochastic depth in the model's"
                " config)"
            )
        if hidden.dtype not in STORED or len(hidden) != 3:
            raise CannotCache(f"a hidden state is {hidden.dtype} {tuple(hidden.shape)}")
        order = hidden.dim_order()
        self.order = order if order[0] == 0 else tuple(range(hidden.ndim))
        self.shape, self.dtype = tuple(hidden.permute(self.order).shape[1:]), hidden.dtype
        expected, expected_gradients = self._head_input(pixel_values=pixels)
        self.install()
        restored = self.unpack(torch.from_numpy(self.pack(hidden))).to(self.device)
        output, gradients = self._head_input(hidden=restored)
        if not torch.equal(expected, output):
            raise CannotCache("its outputs from a cached hidden state are not the same to the bit")
        tolerance = GRADIENT_TOLERANCE[self.autocast or torch.float32]
        for a, b in zip(expected_gradients, gradients, strict=True):
            if (a is None) != (b is None):
                raise CannotCache("a cached hidden state gives other parameters a gradient")
            if a is not None and b is not None and (a - b).norm() > tolerance * a.norm() + 1e-6:
                raise CannotCache("its gradients from a cached hidden state are not the same")

    def _head_input(
        self, **inputs: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """Return the input of the head, whose weights may be zero, and the gradients that a fixed
        weighting of it gives the trained parameters.
        """
        head_inputs: list[torch.Tensor] = []
        classifier, linear = head(self.model)
        hook = linear.register_forward_pre_hook(lambda _, args: head_inputs.append(args[0]))
        try:
            self._run(**inputs)
        finally:
            hook.remove()
        value = head_inputs[0].float()
        trained = [
            parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and not name.startswith(f"{classifier}.")
        ]
        if not value.requires_grad:
            return value, ()
        weights = torch.linspace(-1, 1, value.numel(), device=value.device).view_as(value)
        gradients = torch.autograd.grad((value * weights).sum(), trained, allow_unused=True)
        return value.detach(), gradients

    # ---- hidden states ----

    def compute(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the block's input [B, ...] for `pixels` [B, 3, S, S], without gradients; nothing
        after it runs.
        """

        def stop(_: Any, args: tuple, kwargs: dict) -> None:
            arguments = [*enumerate(args), *kwargs.items()]
            self.argument, value = next(
                (place, v) for place, v in arguments if isinstance(v, torch.Tensor)
            )
            raise _BlockReached(value)

        hook = self.block.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self._run(pixel_values=pixels)
        except _BlockReached as reached:
            return reached.args[0]
        finally:
            hook.remove()
        raise CannotCache(f"{self.name} was not reached")

    def in_memory_order(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states as [B, *shape], contiguous, from the model's own layout."""
        return hidden.permute(self.order).contiguous()

    def pack(self, hidden: torch.Tensor) -> np.ndarray:
        """Return `in_memory_order` as a numpy array of the stored dtype."""
        stored = self.in_memory_order(hidden).cpu()
        return (stored.view(torch.int16) if self.dtype is torch.bfloat16 else stored).numpy()

    def unpack(self, stored: torch.Tensor) -> torch.Tensor:
        """Return what `pack` packed, with the strides that it had."""
        values = stored.view(self.dtype) if stored.dtype is not self.dtype else stored
        return values.permute([self.order.index(d) for d in range(len(self.order))])

    @property
    def bytes_per_image(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    # ---- in training ----

    def install(self) -> None:
        """Let the model take `hidden` [B, ...] in place of `pixel_values`."""

        def take_hidden(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            self.hidden = kwargs.get("hidden")
            if self.hidden is None:
                return args, kwargs
            inputs = {name: value for name, value in kwargs.items() if name != "hidden"}
            shape = len(self.hidden), 3, self.image_size, self.image_size
            return args, inputs | {"pixel_values": self.blank.expand(shape)}

        def enter_block(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if self.hidden is None:
                return args, kwargs
            if isinstance(self.argument, str):
                return args, kwargs | {self.argument: self.hidden}
            return (*args[: self.argument], self.hidden, *args[self.argument + 1 :]), kwargs

        self.hooks = [  # `prepend`: the model's other hooks see `pixel_values`, as ever
            self.model.register_forward_pre_hook(take_hidden, with_kwargs=True, prepend=True),
            self.block.register_forward_pre_hook(enter_block, with_kwargs=True),
        ]
        self.replaced = [(module, vars(module).get("forward")) for module, _ in self.stand_ins]
        for module, stand_in in self.stand_ins:
            module.forward = self._unless_hidden(module.forward, stand_in)

    def _unless_hidden(self, forward: Callable, stand_in: Callable[[int], Any]) -> Callable:
        def forward_or_stand_in(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs) if self.hidden is None else stand_in(len(self.hidden))

        return forward_or_stand_in

    def remove(self) -> None:
        """Make the model what it was before `install`."""
        for hook in self.hooks:
            hook.remove()
        for module, forward in self.replaced:
            if forward is None:
                del module.forward
            else:
                module.forward = forward
        self.hooks, self.replaced, self.hidden = [], [], None


def _output_for_rows(for_two: Any, for_three: Any) -> Callable[[int], Any] | None:
    """Return a function that makes a module's output for n images from its outputs for two and for
    three, or None where some tensor of it grows in another way than by a row an image.
    """
    leaves, spec = pytree.tree_flatten(for_two)
    other_leaves, other_spec = pytree.tree_flatten(for_three)
    if spec != other_spec:
        return None
    grows_by_row = []
    for a, b in zip(leaves, other_leaves, strict=True):
        grows = isinstance(a, torch.Tensor) and a.shape != b.shape
        if grows and (a.shape[0], b.shape[0], a.shape[1:]) != (2, 3, b.shape[1:]):
            return None
        grows_by_row.append(grows)

    def output_for(rows: int) -> Any:
        expanded = [
            leaf[:1].expand(rows, *leaf.shape[1:]) if grows else leaf
            for leaf, grows in zip(leaves, grows_by_row, strict=True)
        ]
        return pytree.tree_unflatten(expanded, spec)

    return output_for
