"""The frozen lower part of a network runs once: the hidden states that enter the first block that
trains, cached.

What runs before that block is found by watching a pass, and whether training may start there by a
second one, so that it holds for any family.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from hf_cifar.data.batches import ImageBatches
from hf_cifar.distributed import all_processes, is_local_writer
from hf_cifar.features.extract import run_over_images
from hf_cifar.features.store import Entry, feature_key, load_entry
from hf_cifar.methods.linear_probe import FeatureBatches
from hf_cifar.models.structure import blocks, head

log = logging.getLogger(__name__)
DISK_SHARE = 0.5  # of the free disk that hidden states may take
STORED = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.int16,
}  # numpy has no bfloat16


class CannotCache(Exception):
    """The lower part can't be left out of training; the message says why."""


class _Reached(Exception):
    """The block has been reached; carries its input."""


class FrozenLowerBlocks:
    """Everything of `model` that runs before its first block that trains.

    Once `install`ed, the model takes `hidden` in place of `pixel_values`: modules before the block
    give back what they gave on a probe, which costs nothing, and the block gets `hidden`. Called
    with `pixel_values` it is the model that it was; its weights and their names stay as they are.

    autocast: the dtype that the model runs in by autocast, or None. channels_last: memory layout of
    the images.
    shape, dtype: of one image's hidden state as it lies in memory; `order`: which dimension of the
    model's tensor each is.
    Raises CannotCache where something below trains or is random, or where outputs or gradients
    would not be the same.
    """

    def __init__(
        self, model: Any, image_size: int, *, autocast: torch.dtype | None, channels_last: bool
    ) -> None:
        self.model, self.image_size, self.autocast, self.channels_last = (
            model,
            image_size,
            autocast,
            channels_last,
        )
        self.device = next(model.parameters()).device
        found = blocks(model)
        training = [
            i
            for i, (_, block) in enumerate(found)
            if any(p.requires_grad for p in block.parameters())
        ]
        if not found or training[:1] == [0]:
            raise CannotCache("the first block trains" if found else "this model has no blocks")
        self.name, self.block = found[training[0] if training else -1]
        self.hidden: torch.Tensor | None = None
        self.place: int | str = 0  # of the hidden states among the block's arguments
        self.handles: list[Any] = []
        self.stand_ins: list[tuple[Any, Callable]] = []
        self.replaced: list[
            tuple[Any, Callable | None]
        ] = []  # modules, with a `forward` of their own (not the class's)
        self.blank = torch.zeros((), device=self.device)
        mode = model.training
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(
            devices
        ):  # training draws what it would have drawn without the probe
            try:
                self._find()
                self._check()
            except (
                RuntimeError,
                TypeError,
                ValueError,
                IndexError,
                KeyError,
                AttributeError,
            ) as error:
                raise CannotCache(
                    f"{type(error).__name__} on a probe: {str(error).splitlines()[0][:120]}"
                ) from None
            finally:
                self.remove()
                model.train(mode)

    # ---- what runs before the block ----

    def _pixels(self, count: int) -> torch.Tensor:
        shape = count, 3, self.image_size, self.image_size
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(count)).to(self.device)
        return (
            pixels.contiguous(memory_format=torch.channels_last) if self.channels_last else pixels
        )

    def _run(self, **inputs: torch.Tensor) -> None:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            self.model(**inputs)

    def _watch(
        self, count: int
    ) -> tuple[dict[nn.Module, list[Any]], list[nn.Module], set[nn.Module]]:
        """Outermost modules that end before the block begins, with what they gave at each call;
        every module that begins before it; every module that begins later.
        """
        ended: list[tuple[nn.Module, Any]] = []
        inside: list[int] = []  # for each running module, how many had ended when it began
        before: list[nn.Module] = []
        later: set[nn.Module] = set()

        def begin(module: nn.Module, _: Any) -> None:
            if later or module is self.block:
                later.add(module)
            else:
                before.append(module)
                inside.append(len(ended))

        def end(module: nn.Module, _: Any, output: Any) -> None:
            if not later:
                del ended[inside.pop() :]
                ended.append((module, output))

        hooks = register_module_forward_pre_hook(begin), register_module_forward_hook(end)
        try:
            with torch.no_grad():
                self._run(pixel_values=self._pixels(count))
        finally:
            for hook in hooks:
                hook.remove()
        calls: dict[nn.Module, list[Any]] = {}
        for module, output in ended:
            calls.setdefault(module, []).append(output)
        return calls, before, later

    def _find(self) -> None:
        self.model.eval()
        (two, before, later), (three, _, _) = self._watch(2), self._watch(3)
        names = {module: name for name, module in self.model.named_modules()}
        for module in before:
            trains = [
                n
                for n, p in module.named_parameters(prefix=names[module], recurse=False)
                if p.requires_grad
            ]
            if trains:
                raise CannotCache(f"{trains[0]} trains and comes before the first block that does")
        for module, outputs in two.items():
            if module in later or len(outputs) > 1 or module not in three:
                continue  # it runs as ever, on what stands in for its input
            if (given := _by_rows(outputs[0], three[module][0])) is not None:
                self.stand_ins.append((module, given))

    def _check(self) -> None:
        """Hidden states are the same in training as in evaluation, and lead to the same outputs and
        gradients.
        """
        pixels = self._pixels(3)
        self.model.train()
        trained = self.compute(pixels)
        self.model.eval()
        hidden = self.compute(pixels)
        if not torch.equal(trained, hidden):
            raise CannotCache(
                "what is frozen is random in training (dropout or stochastic depth in the model's config)"
            )
        if hidden.dtype not in STORED or len(hidden) != 3:
            raise CannotCache(f"a hidden state is {hidden.dtype} {tuple(hidden.shape)}")
        order = hidden.dim_order()
        self.order = order if order[0] == 0 else tuple(range(hidden.ndim))
        self.shape, self.dtype = tuple(hidden.permute(self.order).shape[1:]), hidden.dtype
        want, gradients = self._features(pixel_values=pixels)
        self.install()
        found, others = self._features(
            hidden=self.unpack(torch.from_numpy(self.pack(hidden))).to(self.device)
        )
        if not torch.equal(want, found):
            raise CannotCache("its outputs from a cached hidden state are not the same to the bit")
        for a, b in zip(gradients, others, strict=True):
            same = a is b if a is None or b is None else torch.allclose(a, b, rtol=1e-3, atol=1e-6)
            if not same:
                raise CannotCache("its gradients from a cached hidden state are not the same")

    def _features(
        self, **inputs: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """What the head is given (its weights may be zero), and what that gives each trained
        parameter as gradient.
        """
        caught: list[torch.Tensor] = []
        own, linear = head(self.model)
        hook = linear.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            self._run(**inputs)
        finally:
            hook.remove()
        x = caught[0].float()
        trained = [
            p
            for n, p in self.model.named_parameters()
            if p.requires_grad and not n.startswith(own + ".")
        ]
        if not x.requires_grad:
            return x, ()
        weights = torch.linspace(-1, 1, x.numel(), device=x.device).view_as(x)
        return x.detach(), torch.autograd.grad((x * weights).sum(), trained, allow_unused=True)

    # ---- hidden states ----

    def compute(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, ...], what enters the block for `pixels` [B, 3, S, S]; what comes after is not run,
        and nothing has gradients.
        """

        def stop(_: Any, args: tuple, kwargs: dict) -> None:
            places = [
                p for p, v in (*enumerate(args), *kwargs.items()) if isinstance(v, torch.Tensor)
            ]
            self.place = places[0]
            raise _Reached(args[self.place] if isinstance(self.place, int) else kwargs[self.place])

        handle = self.block.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with torch.no_grad():
                self._run(pixel_values=pixels)
        except _Reached as reached:
            return reached.args[0]
        finally:
            handle.remove()
        raise CannotCache(f"{self.name} was not reached")

    def in_memory(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, *shape], contiguous, from the model's own layout."""
        return hidden.permute(self.order).contiguous()

    def pack(self, hidden: torch.Tensor) -> np.ndarray:
        """`in_memory` as numpy array of the dtype that it is stored as."""
        stored = self.in_memory(hidden).cpu()
        return (stored.view(torch.int16) if self.dtype is torch.bfloat16 else stored).numpy()

    def unpack(self, stored: torch.Tensor) -> torch.Tensor:
        """The inverse of `pack`, strides included."""
        values = stored.view(self.dtype) if stored.dtype is not self.dtype else stored
        return values.permute([self.order.index(d) for d in range(len(self.order))])

    @property
    def bytes_per_image(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    # ---- in training ----

    def install(self) -> None:
        """Let the model take `hidden` [B, ...] in place of `pixel_values`."""

        def begin(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            self.hidden = kwargs.get("hidden")
            if self.hidden is None:
                return args, kwargs
            inputs = {k: v for k, v in kwargs.items() if k != "hidden"}
            size = len(self.hidden), 3, self.image_size, self.image_size
            return args, inputs | {"pixel_values": self.blank.expand(size)}

        def enter(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if self.hidden is None:
                return args, kwargs
            if isinstance(self.place, str):
                return args, kwargs | {self.place: self.hidden}
            return (*args[: self.place], self.hidden, *args[self.place + 1 :]), kwargs

        self.handles = [  # the model's other hooks see `pixel_values`, as ever
            self.model.register_forward_pre_hook(begin, with_kwargs=True, prepend=True),
            self.block.register_forward_pre_hook(enter, with_kwargs=True),
        ]
        self.replaced = [(module, vars(module).get("forward")) for module, _ in self.stand_ins]
        for module, given in self.stand_ins:
            module.forward = self._or_given(module.forward, given)

    def _or_given(self, forward: Callable, given: Callable[[int], Any]) -> Callable:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs) if self.hidden is None else given(len(self.hidden))

        return stand_in

    def remove(self) -> None:
        """The model as it was before `install`."""
        for handle in self.handles:
            handle.remove()
        for module, forward in self.replaced:
            if forward is None:
                del module.forward
            else:
                module.forward = forward
        self.handles, self.replaced, self.hidden = [], [], None


def _by_rows(two: Any, three: Any) -> Callable[[int], Any] | None:
    """n -> something shaped like a module's output for n images, from its outputs for two and for
    three; None where some tensor of it grows in another way.
    """
    leaves, spec = pytree.tree_flatten(two)
    others, same = pytree.tree_flatten(three)
    if spec != same:
        return None
    rows = []
    for a, b in zip(leaves, others, strict=True):
        grows = isinstance(a, torch.Tensor) and a.shape != b.shape
        if grows and (a.shape[0], b.shape[0], a.shape[1:]) != (2, 3, b.shape[1:]):
            return None
        rows.append(grows)

    def given(n: int) -> Any:
        found = [
            v[:1].expand(n, *v.shape[1:]) if grows else v
            for v, grows in zip(leaves, rows, strict=True)
        ]
        return pytree.tree_unflatten(found, spec)

    return given


class HiddenStateBatches(FeatureBatches):
    """Whole batches of hidden states by index, for a model whose `FrozenLowerBlocks` is installed.

    values: [views, n, *prefix.shape] of the stored dtype. labels: int64 [n].
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray, prefix: FrozenLowerBlocks) -> None:
        super().__init__(values, labels)
        self.prefix = prefix

    def model_inputs(
        self, batch: dict[str, torch.Tensor], device: torch.device
    ) -> dict[str, torch.Tensor]:
        """{hidden: [B, ...] as the block gets it, labels: int64 [B]} on `device`."""
        batch = super().model_inputs(batch, device)
        return {"hidden": self.prefix.unpack(batch["features"]), "labels": batch["labels"]}


def hidden_state_batches(
    prefix: FrozenLowerBlocks,
    sets: dict[str, tuple[ImageBatches, int]],
    cache: Path,
    *,
    batch_size: int,
    workers: int,
    weights: str,
    quiet: bool,
) -> dict[str, HiddenStateBatches]:
    """The hidden states of each set, {name: (its images, how many views)}: computed once, written
    to files below `cache` as they come, and memory-mapped.

    Raises CannotCache where they would take more than DISK_SHARE of the free disk, or can't be
    written.
    """
    bf16, found = prefix.autocast is not None, {}
    about = {
        "before": prefix.name,
        "shape": prefix.shape,
        "order": prefix.order,
        "dtype": str(prefix.dtype),
    }
    paths, there = {}, {}
    for name, (batches, views) in sets.items():
        paths[name] = (
            cache / "features" / f"{feature_key(weights, batches, views, bf16, about)}.npy"
        )
        values = load_entry(paths[name], (views, len(batches), *prefix.shape))
        if all_processes(values is not None):
            there[name] = cast(np.ndarray, values)
            log.info("hidden states: %s: %d x %d images from the cache", name, views, len(batches))
    lacking = {name: pair for name, pair in sets.items() if name not in there}
    images = sum(views * len(batches) for batches, views in lacking.values())
    size = images * prefix.bytes_per_image
    (cache / "features").mkdir(parents=True, exist_ok=True)
    if not all_processes(size <= DISK_SHARE * shutil.disk_usage(cache).free):
        raise CannotCache(
            f"hidden states would take {size / 1e9:.1f} GB, more than half of the free disk"
        )
    if images:
        log.info(
            "hidden states: %d images before %s, %.2f GB, into the cache",
            images,
            prefix.name,
            size / 1e9,
        )
    prefix.model.eval()
    with tqdm(total=images, desc="hidden states", unit=" images", disable=quiet) as bar:
        for name, (batches, views) in lacking.items():
            there[name] = _computed(prefix, batches, views, paths[name], batch_size, workers, bar)
    for name, (batches, _) in sets.items():
        found[name] = HiddenStateBatches(there[name], batches.labels, prefix)
    return found


def _computed(
    prefix: FrozenLowerBlocks,
    batches: ImageBatches,
    views: int,
    path: Path,
    batch_size: int,
    workers: int,
    progress: Any,
) -> np.ndarray:
    shape, kind = (views, len(batches), *prefix.shape), np.dtype(STORED[prefix.dtype])
    values = run_over_images(
        batches,
        views,
        batch_size,
        lambda pixels: prefix.in_memory(prefix.compute(pixels)),
        torch.empty(0, *prefix.shape, dtype=prefix.dtype, device=prefix.device),
        workers,
        progress,
    )
    entry = failed = None
    try:
        entry = Entry(path, shape, kind) if is_local_writer() else None
    except OSError as error:
        failed = error
    for (
        batch
    ) in values:  # they come in the file's order; other processes wait for these in any case
        if entry is not None and failed is None:
            try:
                entry.write(
                    (batch.view(torch.int16) if prefix.dtype is torch.bfloat16 else batch)
                    .numpy()
                    .data
                )
            except OSError as error:
                failed = error
    if entry is not None:
        try:
            if failed is None:
                entry.publish()
        except OSError as error:
            failed = error
        entry.close()
    if not all_processes(failed is None):
        raise CannotCache(f"hidden states can't be written ({failed or 'by another process'})")
    found = load_entry(path, shape)
    if not all_processes(found is not None):
        raise CannotCache("hidden states that were written can't be read")
    return cast(np.ndarray, found)
