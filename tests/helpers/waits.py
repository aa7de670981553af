"""Operations that make the host wait for a device, noted as they happen."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

READS = ("tolist", "cpu", "numpy")
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select")


def fake_cuda() -> FakeTensorMode:
    """Return a mode in which tensors may be on CUDA without a GPU: they have no contents.

    Autograd looks for devices once in a process, at the first gradient, which is therefore computed
    before: had it seen this CUDA, it would start threads, and gradients in every process that is
    forked later would fail.
    """
    torch.ones(1, requires_grad=True).sum().backward()
    return FakeTensorMode(allow_non_fake_inputs=True)


class _Reads(TorchFunctionMode):
    """Notes the methods that wait on a GPU and, on a CPU, only look at the memory."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class HostWaits(TorchDispatchMode):
    """Notes in `seen` the name of every operation that makes the host wait for a device: reading a
    number, or a copy between the two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.reads = _Reads(self.seen)

    def __enter__(self) -> HostWaits:
        self.reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.reads.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.seen.append(name)
        devices = {t.device.type for t in (*args, result) if isinstance(t, torch.Tensor)}
        if name in ("_to_copy", "copy_") and len(devices) > 1:
            self.seen.append(name)
        return result


class WaitsOfSteps(TrainerCallback):
    """Notes the waits of all training steps but the first, which sets things up.

    steps: numbers of the steps that have ended.
    """

    def __init__(self) -> None:
        self.waits, self.steps = HostWaits(), list[int]()

    @property
    def seen(self) -> list[str]:
        return self.waits.seen

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.waits.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)
        if state.global_step == state.max_steps:
            self.waits.__exit__(None, None, None)
