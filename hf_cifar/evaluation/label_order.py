"""Which pictures without labels a person should label first."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hf_cifar.data.label_table import LabelTable, read_label_table
from hf_cifar.data.splits import Split
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import check_logits, load_classifier
from hf_cifar.evaluation.known_pictures import features_of, freeze_classifier
from hf_cifar.evaluation.new_pictures import PictureFolder
from hf_cifar.models.structure import head

# Squared distances below this part of the squared lengths are rounding of float32.
ROUNDING = 1e-5


@dataclass(frozen=True)
class LabelOrder:
    """Pictures to label, the first ones first.

    rows: of the folder's pictures. files: their paths from the folder. suggested, confidence: the
    model's best class for each and its probability. candidates: pictures that were not in the
    table. label_names: the model's classes.
    """

    pictures: PictureFolder
    table: LabelTable
    rows: list[int]
    files: list[str]
    suggested: list[str]
    confidence: list[float]
    candidates: int
    label_names: list[str]

    def table_rows(self, prefill: bool) -> list[dict[str, str]]:
        """Return the rows for labels.csv; prefill: with the suggestion as the label as well."""
        return [
            {
                "file_name": file,
                "label": suggested if prefill else "",
                "suggested": suggested,
                "confidence": f"{confidence:.4f}",
            }
            for file, suggested, confidence in zip(
                self.files, self.suggested, self.confidence, strict=True
            )
        ]


def order_pictures(model: str, name: str, count: int, seed: int) -> LabelOrder:
    """Return the `count` pictures of a folder that a model would learn most from, by `badge_order`.

    Pictures that labels.csv lists already are passed over.

    Raises UserError for a folder without further pictures, for a picture that can't be read, and
    for a model that can't be used.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"{name}: there is no such folder; name one with pictures")
    table = read_label_table(folder)
    classifier = load_classifier(model)
    pictures = PictureFolder(folder, classifier.pixel_range)
    files = [os.path.relpath(picture, folder) for picture in pictures.names]
    rows = np.array([row for row, file in enumerate(files) if file not in table.listed], np.int64)
    if not len(rows):
        raise UserError(
            f"{name}: {table.path.name} lists all {len(files):,} pictures already; fill in its"
            " labels, or add pictures"
        )
    split = Split("pictures without labels", pictures, rows, pictures.labels[rows])
    features = features_of(freeze_classifier(classifier), split)
    _, linear = head(classifier.model)
    with torch.inference_mode():
        logits = linear.float().cpu()(features)
    finite = logits.isfinite().all(1)
    check_logits(classifier, finite, files[int(rows[int(finite.int().argmin())])])
    probabilities = logits.double().softmax(1)
    order = badge_order(features, probabilities, count, seed)
    confidence, best = probabilities[torch.from_numpy(order)].max(1)
    return LabelOrder(
        pictures,
        table,
        rows[order].tolist(),
        [files[row] for row in rows[order]],
        [classifier.labels[number] for number in best.tolist()],
        confidence.tolist(),
        len(rows),
        classifier.labels,
    )


def badge_order(
    features: torch.Tensor, probabilities: torch.Tensor, count: int, seed: int
) -> np.ndarray:
    """Return int64 [min(count, n)], the places of pictures to label, by BADGE (Ash et al. 2020).

    Each picture stands for the gradient that its most probable class would give the head's weights:
    (probabilities - one-hot of the best) x features. It is long where the model is uncertain, and
    points elsewhere for pictures of another kind. k-means++ picks among the gradients: the longest
    first, then each with a probability in proportion to its squared distance from the nearest
    picked one. Unlike in the paper, the origin counts as picked: else one picture that the model is
    sure of would be among the first. Of copies one is picked. Where all others lie on picked ones,
    the rest follows by length.

    The picks for a smaller count come first among those for a larger one.

    features: float32 [n, D]. probabilities: float64 [n, C].
    """
    errors = probabilities - torch.nn.functional.one_hot(
        probabilities.argmax(1), probabilities.shape[1]
    )
    # Gradients are outer products, so their products are those of errors times those of features.
    lengths = (errors.square().sum(1) * features.square().sum(1, dtype=torch.float64)).numpy()
    random = np.random.Generator(np.random.Philox(seed))
    nearest = lengths.copy()
    picked = [int(lengths.argmax())]
    while len(picked) < min(count, len(lengths)):
        last = picked[-1]
        products = (errors @ errors[last]) * (features @ features[last]).double()
        distances = lengths + lengths[last] - 2 * products.numpy()
        distances[distances < ROUNDING * (lengths + lengths[last])] = 0
        nearest = np.minimum(nearest, distances)
        nearest[picked] = 0
        sums = np.cumsum(nearest)
        if sums[-1] <= 0:
            by_length = np.argsort(-lengths, kind="stable")
            rest = by_length[~np.isin(by_length, picked)].tolist()
            return np.array(picked + rest[: count - len(picked)])
        place = np.searchsorted(sums, random.random() * sums[-1], side="right")
        picked.append(int(min(place, np.flatnonzero(nearest)[-1])))
    return np.array(picked)
