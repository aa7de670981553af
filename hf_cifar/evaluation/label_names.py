"""The label names of a model matched with those of a data set."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hf_cifar.errors import UserError

# What else the ten classes are called on model cards and in other data sets.
SYNONYMS = {
    "airplane": ("plane", "aeroplane", "aircraft", "jet", "airliner"),
    "automobile": ("car", "auto", "motorcar"),
    "bird": (),
    "cat": ("kitty",),
    "deer": ("stag",),
    "dog": ("puppy",),
    "frog": ("toad",),
    "horse": ("pony",),
    "ship": ("boat", "vessel"),
    "truck": ("lorry",),
}


def _plain(label: str) -> str:
    """One spelling for `Fire_Truck`, `fire truck` and `fire-trucks`."""
    words = re.sub(r"[\W_]+", " ", label).strip().lower()
    for ending, instead in (("sses", "ss"), ("ies", "y"), ("s", "")):
        if (
            words.endswith(ending)
            and not (ending == "s" and words.endswith("ss"))
            and len(words) > len(ending) + 1
        ):
            return words.removesuffix(ending) + instead
    return words


def map_labels(
    model_labels: list[str], data_labels: list[str], told: dict[str, str] | None = None
) -> list[int]:
    """Which class of the data each class of the model means.

    By what was `told` (model's label -> data's), by the same name, by a like one (whatever the
    case, the separators and the plural), by the synonyms of CIFAR-10's classes, and by index for
    `LABEL_3` or `3` where both have as many classes.

    Returns:
        For each index in `model_labels` an index in `data_labels`.

    Raises:
        UserError: labels that nothing maps, or two labels of the model that would mean one class
        without being told.
    """
    ours = {_plain(label): index for index, label in enumerate(data_labels)}
    known = dict(ours)
    for name, others in SYNONYMS.items():
        if _plain(name) in ours:
            for other in others:
                known.setdefault(_plain(other), ours[_plain(name)])

    def meant(label: str) -> int | None:
        if (
            data_labels.count(label) == 1
        ):  # `A` beside `a` and `C#` beside `C++` are spelled alike below
            return data_labels.index(label)
        return known.get(_plain(label))

    hint = 'tell with --labels "theirs=ours,..."'
    explicit: dict[str, int] = {}
    for theirs, label in (told or {}).items():
        if theirs not in model_labels:
            raise UserError(
                f"--labels: the model has no label {theirs!r}; it has {list_labels(model_labels)}"
            )
        if (index := meant(label)) is None:
            raise UserError(
                f"--labels: the data has no label {label!r}; it has {list_labels(data_labels)}"
            )
        explicit[theirs] = index

    numbers = [
        re.fullmatch(r"(?:label[\s_-]*)?(\d+)", label.strip(), re.IGNORECASE)
        for label in model_labels
    ]
    by_index = len(model_labels) == len(data_labels) and {int(n[1]) for n in numbers if n} == set(
        range(len(data_labels))
    )
    mapped: list[int | None] = []
    for label, number in zip(model_labels, numbers, strict=True):
        if label in explicit:
            mapped.append(explicit[label])
        elif (index := meant(label)) is not None:
            mapped.append(index)
        else:
            mapped.append(int(number[1]) if number and by_index else None)
    unmapped = [label for label, index in zip(model_labels, mapped, strict=True) if index is None]
    if unmapped:
        raise UserError(
            f"{len(unmapped)} labels of the model mean no class of the data: {list_labels(unmapped)}; "
            f"the data has {list_labels(data_labels)}; {hint}"
        )
    taken: dict[int, str] = {}
    for label, index in zip(model_labels, mapped, strict=True):
        assert index is not None
        if index in taken and label not in explicit:
            both = f"{taken[index]!r} and {label!r}"
            raise UserError(
                f"the model's labels {both} would both mean {data_labels[index]!r}; {hint}"
            )
        taken[index] = label
    return [index for index in mapped if index is not None]


def list_labels(labels: Sequence[str], most: int = 20) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more
