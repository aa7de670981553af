"""A pretrained vision backbone to the top of CIFAR-10, inside the Hugging Face ecosystem.

>>> import hf_cifar
>>> run = hf_cifar.train("quickstart", learning_rate=3e-3)  # doctest: +SKIP
>>> run.metrics["test_accuracy"], run.path, run.pipeline()  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_cifar.runs.run import Run


def train(recipe: str, *, fresh: bool = False, **overrides: Any) -> "Run":
    """Train what a recipe says: a file or a packaged name, with any key overridden. See
    `hf_cifar.runs.run.train`.
    """
    from hf_cifar.runs.run import train as train_

    return train_(recipe, fresh=fresh, **overrides)


__all__ = ["train"]
