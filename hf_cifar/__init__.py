"""Fine-tune a pretrained vision backbone on CIFAR-10 or on your own pictures.

>>> import hf_cifar
>>> run = hf_cifar.train("quickstart", learning_rate=3e-3)  # doctest: +SKIP
>>> run.metrics["test_accuracy"], run.path, run.pipeline()  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_cifar.runs.run import Run


def train(recipe: str, *, fresh: bool = False, **overrides: Any) -> "Run":
    """Train a recipe, a file or the name of a packaged one, with any of its keys overridden.

    Returns the finished run; see `hf_cifar.runs.run.train`.
    """
    from hf_cifar.runs.run import train as train_

    return train_(recipe, fresh=fresh, **overrides)


__all__ = ["train"]
