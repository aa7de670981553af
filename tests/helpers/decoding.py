"""Counts the pictures that a process decodes."""

from __future__ import annotations

from typing import Any

import pytest

from hf_cifar.data import cache_build, decode_split, image_store


def count_decoded(patch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by the name of a module each time it decodes a picture."""
    decoded: list[str] = []
    for module in (decode_split, cache_build, image_store):

        def to_rgb(*arguments: Any, module: Any = module, call: Any = module.to_rgb) -> Any:
            decoded.append(module.__name__.rpartition(".")[2])
            return call(*arguments)

        patch.setattr(module, "to_rgb", to_rgb)
    return decoded
