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
HINT = 'say what they mean with --labels "theirs=ours,..."'


def map_labels(
    model_labels: list[str], data_labels: list[str], given: dict[str, str] | None = None
) -> list[int]:
    """Return for each class of the model the number of the data's class that it means.

    A class is matched by what was `given` (model's label -> data's), by the same name, by a similar
    one (whatever the case, the separators and the plural), by the synonyms of CIFAR-10's classes,
    and by number for `LABEL_3` or `3` where both have as many classes.

    Raises UserError for labels that match nothing, and for two labels of the model that would mean
    one class without being given.
    """
    classes = _Classes(data_labels)
    explicit = _given_numbers(model_labels, classes, given or {})
    mapping: list[int] = []
    unmapped: list[str] = []
    for label, written in zip(model_labels, _numbers(model_labels, len(data_labels)), strict=True):
        candidates = (explicit.get(label), classes.find(label), written)
        number = next((n for n in candidates if n is not None), None)
        mapping.append(-1 if number is None else number)
        if number is None:
            unmapped.append(label)
    if unmapped:
        raise UserError(
            f"{len(unmapped)} labels of the model mean no class of the data:"
            f" {list_labels(unmapped)}; the data has {list_labels(data_labels)}; {HINT}"
        )
    taken: dict[int, str] = {}
    for label, number in zip(model_labels, mapping, strict=True):
        if number in taken and label not in explicit:
            raise UserError(
                f"the model's labels {taken[number]!r} and {label!r} would both mean"
                f" {data_labels[number]!r}; {HINT}"
            )
        taken[number] = label
    return mapping


def list_labels(labels: Sequence[str], most: int = 20) -> str:
    """Return the first labels with commas, and how many more there are."""
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


class _Classes:
    """The classes of the data, found by name."""

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels
        # `A` beside `a` and `C#` beside `C++` have one plain spelling, so exact names come first.
        self._exact = {label: number for number, label in enumerate(labels)}
        self._plain = {_plain(label): number for number, label in enumerate(labels)}
        for name, synonyms in SYNONYMS.items():
            if _plain(name) in self._plain:
                for synonym in synonyms:
                    self._plain.setdefault(_plain(synonym), self._plain[_plain(name)])

    def find(self, label: str) -> int | None:
        """Return the number of the class with this name, a similar one or a synonym."""
        return self._exact.get(label, self._plain.get(_plain(label)))


def _given_numbers(
    model_labels: list[str], classes: _Classes, given: dict[str, str]
) -> dict[str, int]:
    """Return the data's class number of each model's label that was given. Raises UserError."""
    numbers: dict[str, int] = {}
    for theirs, ours in given.items():
        if theirs not in model_labels:
            raise UserError(
                f"--labels: the model has no label {theirs!r}; it has {list_labels(model_labels)}"
            )
        number = classes.find(ours)
        if number is None:
            raise UserError(
                f"--labels: the data has no label {ours!r}; it has {list_labels(classes.labels)}"
            )
        numbers[theirs] = number
    return numbers


def _plain(label: str) -> str:
    """Return one spelling for `Fire_Truck`, `fire truck` and `fire-trucks`."""
    words = re.sub(r"[\W_]+", " ", label).strip().lower()
    for plural, singular in (("sses", "ss"), ("ies", "y"), ("s", "")):
        is_plural = words.endswith(plural) and not (plural == "s" and words.endswith("ss"))
        if is_plural and len(words) > len(plural) + 1:
            return words.removesuffix(plural) + singular
    return words


def _numbers(model_labels: list[str], classes: int) -> list[int | None]:
    """Return the class numbers in labels such as `LABEL_3` or `3`; all None unless they are those
    of `classes` classes.
    """
    pattern = re.compile(r"(?:label[\s_-]*)?(\d{1,9})", re.IGNORECASE | re.ASCII)
    matches = [pattern.fullmatch(label.strip()) for label in model_labels]
    numbers = [int(match[1]) if match else None for match in matches]
    complete = len(model_labels) == classes and set(numbers) - {None} == set(range(classes))
    return numbers if complete else [None] * len(model_labels)
