"""Several labels a picture, or none: each set of labels is one class of the data, `cat|dog`.

So the image cache, its fingerprints, cuts and audits treat such data as any other. The objective
takes the names of the sets apart again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hf_cifar.errors import UserError
from hf_cifar.text import visible

SEPARATOR = "|"
# A cut gives one of each class at least to both sides. Of the many sets that few pictures have, it
# would take far more than its share.
FEWEST_OF_A_SET = 10


def join_labels(labels: Iterable[Any], where: str) -> str:
    """Return the name of a set of labels: sorted, with `|` between them; "" for none.

    labels: texts or whole numbers. where: the row, for messages. Raises UserError for another type,
    and for a label that holds a `|`.
    """
    names = set()
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise UserError(
                f"{where}: a label of the list is {type(label).__name__}, but must be a text or a"
                " whole number; correct it"
            )
        if SEPARATOR in (name := str(label)):
            raise UserError(
                f"{where}: the label {visible(name, 80)} holds a `{SEPARATOR}`, which stands"
                " between several labels; rename it"
            )
        names.add(name)
    return SEPARATOR.join(sorted(names))


def split_sets(set_names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the labels in the names of sets, sorted (as numbers if all of them are), and which
    of them are in each set: bool [sets, labels].
    """
    sets = [{part.strip() for part in name.split(SEPARATOR) if part.strip()} for name in set_names]
    names = sorted(set().union(*sets))
    if all(name.isdecimal() for name in names):
        names.sort(key=lambda name: (int(name), name))
    return names, np.array([[name in members for name in names] for members in sets], dtype=bool)


def pool_rare_sets(labels: np.ndarray) -> np.ndarray:
    """Return int64 [n] to stratify a cut by: sets that fewer than `FEWEST_OF_A_SET` pictures have
    count as one class.

    labels: int64 [n], the set of each picture.
    """
    rare = np.bincount(labels)[labels] < FEWEST_OF_A_SET
    return np.unique(np.where(rare, -1, labels), return_inverse=True)[1].astype(np.int64)
