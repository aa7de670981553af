"""What the pictures of a split are called at their source."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hf_cifar.data.decode_split import RawImages
from hf_cifar.data.image_store import ImageStore
from hf_cifar.data.sources.columns import Columns
from hf_cifar.data.sources.find import find_source
from hf_cifar.recipe.recipe import Recipe


def picture_names(recipe: Recipe, split: str, images: ImageStore) -> list[str | None]:
    """Return the name of each row of the images that a source brings as `split`: a file or "row 7",
    or None where the source has no pictures of its own, such as the original archives.
    """
    columns = Columns(recipe.image_column_name, recipe.label_column_name)
    source = find_source(
        recipe.dataset_name, recipe.dataset_revision, recipe.dataset_config_name, columns
    )
    if split not in source.splits:
        return [None] * len(images)
    with TemporaryDirectory() as folder:
        opened = source.open(split, Path(folder))
        if isinstance(opened, RawImages):
            return [None] * len(images)
        bad = set(images.bad)
        names = [opened.name(row) for row in range(len(opened.labels))]
    readable: list[str | None] = [name for name in names if name not in bad]
    return readable if len(readable) == len(images) else [None] * len(images)
