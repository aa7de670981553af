"""Batches of several tasks: the images of all data sets in one seeded order, with a label for each
task that an image has one for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hf_cifar.augmentation.counter_rng import QUARTER_TURN, uniform
from hf_cifar.data.batches import BatchDataset

NO_LABEL = -100  # which torch's cross-entropy leaves out
TURNS = ("0", "90", "180", "270")  # degrees against the clock, the labels of an orientation task


class LabelledBatches:
    """Batches of one data set, with a label for each task of the run.

    batches: of the images. labels: int64 [n, T], NO_LABEL where an image has none for a task.
    """

    def __init__(self, batches: BatchDataset, labels: np.ndarray) -> None:
        self.batches, self._labels = batches, labels

    @property
    def labels(self) -> np.ndarray:
        """int64 [n, T]."""
        return self._labels

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        """Return the batch of images, with `task_labels`, int64 [B, T]."""
        index = np.asarray(tickets, dtype=np.int64) % len(self)
        labels = torch.from_numpy(self._labels[index])
        return self.batches.__getitems__(tickets) | {"task_labels": labels}

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the model's arguments; labels are int64 [B, T]."""
        rest = {name: value for name, value in batch.items() if name != "task_labels"}
        labels = batch["task_labels"].to(device, non_blocking=True)
        return self.batches.model_inputs(rest, device) | {"labels": labels}


class TurnedBatches(LabelledBatches):
    """Batches of images that are turned by 0, 90, 180 or 270 degrees, and labelled by how much.

    The turn is drawn by seed, epoch and image. In evaluation there is one epoch.

    task, tasks: the number of the task, and how many the run has.
    """

    def __init__(self, batches: BatchDataset, seed: int, task: int, tasks: int) -> None:
        self.seed, self.task = seed, task
        count = len(batches)
        super().__init__(batches, np.full((count, tasks), NO_LABEL, dtype=np.int64))
        epoch = torch.zeros(count, dtype=torch.int64)
        self._labels[:, task] = quarter_turns(seed, epoch, torch.arange(count)).numpy()

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        batch = super().__getitems__(tickets)
        epoch, index = np.divmod(np.asarray(tickets, dtype=np.int64), len(self))
        turns = quarter_turns(self.seed, torch.from_numpy(epoch), torch.from_numpy(index))
        batch["task_labels"][:, self.task] = turns
        return batch

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        inputs = super().model_inputs(batch, device)
        turns = inputs["labels"][:, self.task]
        return inputs | {"pixel_values": turned(inputs["pixel_values"], turns)}


def quarter_turns(seed: int, epoch: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return by how many quarters each image is turned, int64 [B] in 0..3, drawn by counter."""
    return (4 * uniform(seed, epoch, index, 1, QUARTER_TURN)[:, 0]).long()


def turned(images: torch.Tensor, quarters: torch.Tensor) -> torch.Tensor:
    """Return square images [B, C, S, S], each turned against the clock. quarters: int64 [B]."""
    result = images
    for count in (1, 2, 3):
        chosen = (quarters == count)[:, None, None, None]
        result = torch.where(chosen, torch.rot90(images, count, (-2, -1)), result)
    return result


class JointBatches:
    """The images of several data sets as one, one data set after the other.

    A batch holds images of all, as many as the order of its tickets brings, so that batch norms see
    in training what they see in evaluation.

    parts: the data sets, whose images have one size when they are finished.
    channels_last: memory layout of the model's images.
    """

    def __init__(self, parts: Sequence[LabelledBatches], *, channels_last: bool = False) -> None:
        self.parts, self.channels_last = list(parts), channels_last
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.starts = self.ends - [len(part) for part in self.parts]

    @property
    def labels(self) -> np.ndarray:
        """int64 [n, T]."""
        return np.concatenate([part.labels for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitems__(self, tickets: list[int]) -> dict[str, Any]:
        """Return labels, int64 [B], by which the Trainer counts images and which are all 0; the
        batches of the parts that have images here, by number; and places, int64 [B], where each
        image stands among those.
        """
        epoch, index = np.divmod(np.asarray(tickets, dtype=np.int64), len(self))
        part_of = np.searchsorted(self.ends, index, side="right")
        batch: dict[str, Any] = {"labels": torch.zeros(len(tickets), dtype=torch.int64)}
        parts, order = {}, []
        for number, part in enumerate(self.parts):
            members = np.flatnonzero(part_of == number)
            if len(members):
                inside = epoch[members] * len(part) + index[members] - self.starts[number]
                parts[str(number)] = part.__getitems__(inside.tolist())
                order.append(members)
        sizes = [values["size"] for values in parts.values() if "size" in values]
        batch |= {"size": sizes[0]} if sizes else {}
        return batch | {"parts": parts, "places": torch.from_numpy(np.concatenate(order).argsort())}

    def model_inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the model's arguments: pixel_values, float32 [B, 3, S, S], and labels, int64
        [B, T], in the order of the tickets.
        """
        inputs = [
            self.parts[int(number)].model_inputs(values, device)
            for number, values in batch["parts"].items()
        ]
        if len(inputs) == 1:
            return inputs[0]
        places = batch["places"].to(device, non_blocking=True)
        joined = dict(inputs[0])  # with what the model takes beside images
        for name in ("pixel_values", "labels"):
            joined[name] = torch.cat([values[name] for values in inputs])[places]
        if self.channels_last:
            layout = torch.channels_last
            joined["pixel_values"] = joined["pixel_values"].contiguous(memory_format=layout)
        return joined
