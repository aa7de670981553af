"""The methods that a recipe can name."""

from __future__ import annotations

from hf_cifar.methods.base import Method
from hf_cifar.methods.full import Full
from hf_cifar.methods.linear_probe import LinearProbe
from hf_cifar.methods.lora import Lora
from hf_cifar.methods.partial import Partial

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "partial": Partial,
    "lora": Lora,
    "linear": LinearProbe,
}
