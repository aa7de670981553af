"""`full_determinism`: torch may use no kernel that adds in another order each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import assert_same_weights, train_into
from helpers.watching import BeforeForward, trainer_callbacks

from hf_cifar.errors import UserError


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the key sets holds for the rest of a process, so it is undone here."""
    names = ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


def test_the_key_is_taken_and_a_cpu_run_keeps_its_bits(tiny: Any, tmp_path: Path) -> None:
    plain = train_into(tmp_path / "plain", tiny("resnet"))
    assert not torch.are_deterministic_algorithms_enabled()
    seen: list[tuple[bool, str | None]] = []

    def look(*_: Any) -> None:
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        seen.append((torch.are_deterministic_algorithms_enabled(), workspace))

    with trainer_callbacks(BeforeForward(look)):
        run = train_into(tmp_path / "run", tiny("resnet"), full_determinism=True)
    assert seen and all(enabled and workspace for enabled, workspace in seen)
    assert not torch.backends.cudnn.benchmark
    assert_same_weights(plain, run)


def test_an_operation_without_such_a_kernel_is_named(tiny: Any, tmp_path: Path) -> None:
    def put(*_: Any) -> None:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))  # torch has none for this one

    with (
        trainer_callbacks(BeforeForward(put)),
        pytest.raises(UserError, match=r"^full_determinism: put_ has no deterministic kernel"),
    ):
        train_into(tmp_path / "run", tiny("vit"), full_determinism=True)
