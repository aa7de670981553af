"""The user's limits on a model, and which models meet them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hf_cifar.errors import UserError
from hf_cifar.planning.inference_cost import InferenceCost


@dataclass(frozen=True)
class Limits:
    """The user's limits on the cost of a model; None where there is no limit.

    max_memory: bytes with one image at a time, and of the batch that images/s are measured with.
    max_milliseconds: latency of one image. min_images_per_second: in the best batch.
    """

    max_parameters: float | None = None
    max_memory: float | None = None
    max_milliseconds: float | None = None
    min_images_per_second: float | None = None

    def misses(self, cost: InferenceCost) -> dict[str, float]:
        """Return the limits that a model misses, and how often its cost is the limit, above 1."""
        ratios = {
            "max_parameters": _ratio(cost.parameters, self.max_parameters),
            "max_memory": _ratio(cost.memory_bytes, self.max_memory),
            "max_milliseconds": _ratio(cost.milliseconds, self.max_milliseconds),
            "min_images_per_second": (self.min_images_per_second or 0.0) / cost.images_per_second,
        }
        return {name: ratio for name, ratio in ratios.items() if ratio > 1}

    def describe_misses(self, cost: InferenceCost) -> str:
        """Return the limits that a model misses in words, such as `12.1 ms, --max-milliseconds 10
        (missed by 21 %)`.
        """
        values = {
            "max_parameters": f"{cost.parameters:,} parameters",
            "max_memory": f"{cost.memory_bytes / 1e6:,.1f} MB",
            "max_milliseconds": f"{cost.milliseconds:.3g} ms",
            "min_images_per_second": f"{cost.images_per_second:.3g} images/s",
        }
        parts = []
        for name, ratio in self.misses(cost).items():
            limit, option = dataclasses.asdict(self)[name], f"--{name.replace('_', '-')}"
            share = ratio - 1 if name.startswith("max") else 1 - 1 / ratio
            parts.append(f"{values[name]}, {option} {limit:g} (missed by {100 * share:.1f} %)")
        return "; ".join(parts)


def _ratio(value: float, limit: float | None) -> float:
    return 0.0 if limit is None else value / limit


def within_limits(costs: dict[str, InferenceCost], limits: Limits) -> list[str]:
    """Return the models that meet the limits.

    costs: of each model. Raises UserError where none does, and names the nearest one there.
    """
    meeting = [model for model, cost in costs.items() if not limits.misses(cost)]
    if not meeting:
        nearest = min(costs, key=lambda model: max(limits.misses(costs[model]).values()))
        raise UserError(
            f"compare: no backbone meets the limits; the nearest is {nearest}:"
            f" {limits.describe_misses(costs[nearest])}; raise a limit or name smaller backbones"
        )
    return meeting
