"""Training steps that a process makes alone, or two processes make in shards."""

from typing import Any

import torch
from helpers import tiny_models
from helpers.adapted_models import prepare

STEPS, BATCH = 4, 8


def build(family: str, method: str) -> Any:
    """Return the same tiny model in every process."""
    torch.manual_seed(0)
    return prepare(tiny_models.build(family), method)


def make_optimizer(model: Any) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=0.05, momentum=0.9)


def train_step(model: Any, optimizer: torch.optim.Optimizer, number: int, rows: slice) -> None:
    """Train on some rows of the batch that the step's number draws."""
    random = torch.Generator().manual_seed(number)
    pixels = torch.randn(BATCH, 3, 32, 32, generator=random)
    labels = torch.randint(10, (BATCH,), generator=random)
    logits = model(pixel_values=pixels[rows]).logits
    torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
    optimizer.step()
    optimizer.zero_grad()
