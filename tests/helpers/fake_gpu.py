"""A GPU that computes nothing, for a process of its own.

torch's FakeTensorMode runs on torch's Python backend for new devices: shapes, dtypes, devices,
autograd and autocast are real, and no kernel runs. Every operation is seen, so a test can count
them and can tell where a real GPU would make the host wait.

Importing this module installs the device for good, so only a child process may do it, and before
`hf_cifar` is imported. The package then takes the device for CUDA: in its modules the string "cuda"
reads "gpu" and `torch.cuda` reads `torch.gpu`, so what they do on CUDA alone (pinned copies,
events, resident images) runs here too. What runs on the device runs inside MODE and WATCH, the
watch innermost.

Reads of a value are answered without a device: a comparison with `<`, `>` or `!=` is false, one
with `<=`, `>=` or `==` is true, and every other value is zero.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from types import CodeType, SimpleNamespace
from typing import Any

import torch
from torch import library
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "gpu"
MEMORY = 80 * 10**9  # bytes
# Operations that launch no kernel.
VIEWS = {
    *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "diagonal"),
    *("device", "empty", "empty_like", "empty_strided", "expand", "is_same_size", "lift_fresh"),
    *("narrow", "new_empty", "new_empty_strided", "permute", "reshape", "select", "slice", "split"),
    *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unfold"),
    *("unsqueeze", "view"),
}
TRUE_COMPARISONS = {"ge", "le", "eq", "isfinite", "all"}
# What autocast runs in bfloat16 and in float32 on CUDA, as far as image models use it.
LOWER_PRECISION = (
    *("conv2d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv"),
    *("scaled_dot_product_attention", "einsum"),
)
FULL_PRECISION = ("layer_norm", "group_norm", "cross_entropy_loss", "nll_loss")


class FakeEvent:
    """Stands for `torch.cuda.Event`: the end of the queue is reached at once."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1.0  # milliseconds


class FakeDeviceModule(backend_registration._DummyBackendModule):
    """What stands for `torch.cuda`."""

    Event = FakeEvent

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, *_: Any) -> None: ...

    def synchronize(self, *_: Any) -> None: ...

    def current_stream(self, *_: Any) -> None: ...

    def manual_seed(self, *_: Any) -> None: ...

    def manual_seed_all(self, *_: Any) -> None: ...

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, *_: Any) -> None: ...

    def get_device_capability(self, *_: Any) -> tuple[int, int]:
        return 9, 0

    def get_device_name(self, *_: Any) -> str:
        return "a GPU that computes nothing"

    def get_device_properties(self, *_: Any) -> Any:
        return SimpleNamespace(total_memory=MEMORY, name=self.get_device_name(), uuid="0")

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return MEMORY, MEMORY

    def max_memory_allocated(self, *_: Any) -> int:
        return 0

    def reset_peak_memory_stats(self, *_: Any) -> None: ...

    def empty_cache(self) -> None: ...


class Watch(TorchDispatchMode):
    """Sees every operation, and answers reads of values that no device has.

    kernels: operations on the device that are not views, by phase and name. waits: what would make
    the host wait, each with the line of code. mixed: operations on lists that lie on two devices.
    Only what happens while `counting` is set counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counting, self.phase = False, "other"
        self.kernels: dict[str, Counter[str]] = {}
        self.waits: list[str] = []
        self.mixed: list[str] = []

    def reset(self) -> None:
        self.kernels, self.waits, self.mixed = {}, [], []

    @contextlib.contextmanager
    def at(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def wait(self, what: str) -> None:
        if self.counting:
            self.waits.append(f"{self.phase}: {what} at {_line()}")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        is_fake = bool(args) and isinstance(args[0], FakeTensor)
        if name == "_local_scalar_dense" and is_fake:
            if args[0].device.type == NAME:
                self.wait("a value is read")
            truth = getattr(args[0], "comparison", False)
            dtype = args[0].dtype
            return truth if dtype is torch.bool else 0.0 if dtype.is_floating_point else 0
        if name in ("equal", "allclose") and is_fake:
            self.wait("two tensors are compared")
            return True
        if name in ("nonzero", "unique", "masked_select", "_unique2"):
            self.wait(f"the size of the result of {name} depends on values")
        if name == "_to_copy" and not is_fake and kwargs.get("device") == GPU:
            args = (MODE.from_tensor(args[0]), *args[1:])  # the copy of a real one would run
        out = func(*args, **kwargs)
        if isinstance(out, FakeTensor):
            out.comparison = name in TRUE_COMPARISONS
        if not self.counting:
            return out
        tensors = [t for t in pytree.tree_leaves((args, kwargs, out)) if _is_tensor(t)]
        devices = {t.device.type for t in tensors}
        if NAME in devices and name not in VIEWS:
            self.kernels.setdefault(self.phase, Counter())[name] += 1
        if len(devices) > 1 and name in ("_to_copy", "copy_"):
            non_blocking = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            if not non_blocking:
                self.wait(f"{tuple(tensors[0].shape)} is copied and the host waits")
        if name.startswith(("_foreach", "_fused", "_amp_foreach")):
            lists = [a for a in args if isinstance(a, list | tuple)]
            lists = [a for a in lists if a and all(map(_is_tensor, a))]
            places = {str(t.device) for group in lists for t in group}
            if len(places) > 1:
                self.mixed.append(f"{name}: {sorted(places)} at {_line()}")
        return out


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _line() -> str:
    """Return the innermost line outside torch that is running, and the package's own above it."""
    frames = [
        f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}"
        for frame in traceback.extract_stack()
        if "/torch/" not in frame.filename and frame.filename != __file__
    ]
    ours = [frame for frame in frames if "hf_cifar" in frame]
    return " < ".join(dict.fromkeys([*frames[-1:], *ours[-1:]]))


# ---- the package takes the device for CUDA ----


class _CudaIsGpu(ast.NodeTransformer):
    """Reads "cuda" as "gpu" and `torch.cuda` as `torch.gpu`."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.copy_location(ast.Constant(NAME), node) if node.value == "cuda" else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == "cuda" and isinstance(node.value, ast.Name) and node.value.id == "torch":
            node.attr = NAME
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        tree = _CudaIsGpu().visit(ast.parse(data, path))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)  # never the cached bytecode, which reads "cuda"
        return self.source_to_code(self.get_data(path), path)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] != "hf_cifar":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _register_autocast() -> list[library.Library]:
    """Give the device autocast as CUDA has it. Returns what must stay alive."""
    fallback = library.Library("_", "IMPL")
    fallback.fallback(library.fallthrough_kernel, "AutocastPrivateUse1")
    aten = library.Library("aten", "IMPL")
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any, dtype: torch.dtype) -> Any:
        def one(leaf: Any) -> Any:
            ours = _is_tensor(leaf) and leaf.is_floating_point() and leaf.device.type == NAME
            return leaf.to(dtype) if ours and leaf.dtype != dtype else leaf

        return pytree.tree_map(one, value)

    def rule(name: str, dtype: torch.dtype) -> None:
        operation = getattr(torch.ops.aten, name).default

        def run(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(key):
                return operation(*cast(args, dtype), **cast(kwargs, dtype))

        aten.impl(name, run, "AutocastPrivateUse1")

    for name in LOWER_PRECISION:
        rule(name, torch.bfloat16)
    for name in FULL_PRECISION:
        rule(name, torch.float32)
    return [fallback, aten]


def outside(function: Callable) -> Callable:
    """Return the function so that it runs on real tensors, without the fake device."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return run


def _install() -> tuple[torch.device, Watch, FakeTensorMode]:
    """Make the device, and let torch, accelerate, transformers and hf_cifar use it as if it were
    CUDA.
    """
    gpu, watch = torch.device(NAME, 0), Watch()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    sys.meta_path.insert(0, _Finder())

    import torch.utils._foreach_utils as foreach_utils

    supported = [*foreach_utils._get_foreach_kernels_supported_devices(), NAME]
    for module in list(sys.modules.values()):
        if getattr(module, "_get_foreach_kernels_supported_devices", None) is not None:
            module._get_foreach_kernels_supported_devices = lambda: supported

    # `Module.to` swaps fake parameters, so that they stay the same objects with other data, as on
    # CUDA, unless something holds a weak reference to them, as FakeTensorMode does.
    torch.utils.weakref = SimpleNamespace(getweakrefs=lambda _: [])  # type: ignore[attr-defined]

    def numpy(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensor, FakeTensor):
            return real_numpy(tensor, *args, **kwargs)
        if tensor.device.type == NAME:
            raise TypeError("a tensor on the GPU can't be read as numpy")
        with unset_fake_temporarily():
            return real_numpy(torch.zeros(tensor.shape, dtype=tensor.dtype))

    real_numpy = torch.Tensor.numpy
    torch.Tensor.numpy = numpy  # type: ignore[method-assign,assignment]

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        with unset_fake_temporarily():
            made = real_tensor(data, *args, **kwargs)
        if device is None or torch.device(device).type != NAME:
            return made if device is None else made.to(device)
        watch.wait("a tensor is made on the host and copied")  # as `torch.tensor` does on CUDA
        return torch.empty(made.shape, dtype=made.dtype, device=device)

    real_tensor = torch.tensor
    torch.tensor = tensor  # type: ignore[assignment]
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign,assignment]

    from torch.utils.data import DataLoader
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    fetch = outside(_BaseDataLoaderIter.__next__)
    DataLoader.__iter__ = outside(DataLoader.__iter__)  # type: ignore[method-assign]

    def as_fake(value: Any) -> Any:
        return mode.from_tensor(value) if _is_tensor(value) else value

    _BaseDataLoaderIter.__next__ = lambda loader: pytree.tree_map(as_fake, fetch(loader))  # type: ignore[method-assign]

    os.environ["ACCELERATE_TORCH_DEVICE"] = str(gpu)
    import transformers.training_args

    for name in ("is_torch_tf32_available", "is_torch_bf16_gpu_available"):
        setattr(transformers.training_args, name, lambda: True)
    transformers.training_args.enable_tf32 = lambda _: None  # type: ignore[attr-defined]
    return gpu, watch, mode


backend_registration._setup_privateuseone_for_python_backend(NAME, FakeDeviceModule())
LIBRARIES = _register_autocast()
GPU, WATCH, MODE = _install()
