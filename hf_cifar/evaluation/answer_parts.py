"""The answers to many pictures on disk: parts that appear whole beside the output, then one parquet
file of them all.

The parts lie in a folder named after the output, with a file that says which answers they are, so
that a command that was stopped goes on from them, and no other command does.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.files import atomic_file, json_digest, refused_write, write_json

PART_ROWS = 1024  # what a stop costs at most: 20 s of EfficientNet-Lite0 on two cores
GROUP_ROWS = 64 * PART_ROWS  # of a row group of the output, which is held in memory
DATA, FACTS, LAYOUT, LOCK = "data", "answers.json", "layout.json", ".lock"
PART = r"part-\d{6}\.parquet"
METADATA = b"hf_cifar"  # key of the output's metadata; its value is a digest of the facts


def parts_folder(out: Path) -> Path:
    """Return where the parts of the file `out` lie."""
    return out.with_name(f"{out.name}.parts")


class AnswerParts:
    """The answers to pictures on their way to the file `out`.

    Part i holds the pictures from row i * PART_ROWS on. Several processes may write parts; the
    first process does all the rest.

    facts: what the answers depend on, in words; JSON values. tasks: names of the model's tasks, if
    it has several. rows: how many pictures there are; set once they are counted.
    """

    def __init__(self, out: Path, facts: dict[str, Any], tasks: Iterable[str] = ()) -> None:
        self.out, self.facts, self.folder = out, facts, parts_folder(out)
        self.schema = answer_schema(tasks)
        self.rows = 0

    @property
    def data_folder(self) -> Path:
        """Where a data set may keep files while its pictures are answered."""
        return self.folder / DATA

    # ---- the whole ----

    def finished(self) -> bool:
        """Return whether `out` holds these answers already. Raises UserError if it holds others."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not os.path.lexists(self.out):
            return False
        metadata: dict[bytes, bytes] = {}
        with contextlib.suppress(OSError, pa.ArrowException):
            metadata = pq.read_schema(self.out).metadata or {}
        if metadata.get(METADATA) != json_digest(self.facts).encode():
            raise UserError(
                f"{self.out} exists and holds something else than these answers; name another"
                " --out, or remove it"
            )
        shutil.rmtree(self.folder, ignore_errors=True)  # a kill came between the last two steps
        return True

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder of the parts, for new answers or for more of the same ones.

        Raises UserError where it holds parts of other answers, where another command uses it, and
        where it can't be written.
        """
        from filelock import FileLock, Timeout

        with self.writable():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / LOCK, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise UserError(
                    f"{self.folder}: another command is writing these answers; wait for it or name"
                    " another --out"
                ) from None
        try:
            self._begin()
            yield
        finally:
            if (self.folder / FACTS).is_file() and not self._there():
                shutil.rmtree(self.folder, ignore_errors=True)  # nothing to go on from
            shutil.rmtree(self.data_folder, ignore_errors=True)
            lock.release()

    def _begin(self) -> None:
        facts_file = self.folder / FACTS
        others = set(os.listdir(self.folder)) - {FACTS, LAYOUT, LOCK, DATA} - self._there()
        if others := {name for name in others if not name.endswith(".tmp")}:
            raise UserError(
                f"{self.folder} holds something else than answers ({min(others)}); name another"
                " --out"
            )
        if self._there():
            before = self._read(facts_file)
            if different := [name for name in self.facts if before.get(name) != self.facts[name]]:
                raise UserError(
                    f"{self.folder} holds the beginning of other answers (another"
                    f" {', another '.join(different)}); name another --out, or remove that folder"
                )
        with self.writable():
            if not self._there():
                (self.folder / LAYOUT).unlink(missing_ok=True)
                write_json(facts_file, self.facts)
            # What a killed process was writing.
            shutil.rmtree(self.data_folder, ignore_errors=True)
            self.data_folder.mkdir()
            half = f"{glob.escape(self.out.name)}.*-*.tmp"
            for left in (*self.folder.glob("*.tmp"), *self.out.parent.glob(half)):
                left.unlink()

    def layout(self, choose: Callable[[], list[Any]]) -> list[Any]:
        """Return what `choose` gave when these answers were begun, so that all of them are computed
        alike.
        """
        path = self.folder / LAYOUT
        if path.is_file():
            return self._read(path)["layout"]
        layout = choose()
        with self.writable():
            write_json(path, {"layout": layout})
        return layout

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError
            return content
        except (OSError, ValueError):
            raise UserError(
                f"{path} is missing or damaged; remove the folder {self.folder} and run the same"
                " command"
            ) from None

    @contextlib.contextmanager
    def writable(self) -> Iterator[None]:
        """Turn what a disk refuses into a UserError."""
        try:
            yield
        except OSError as error:
            reason = refused_write(error) or error.strerror or str(error)
            raise UserError(
                f"cannot write to {self.folder} ({reason}); free some space and run the same"
                " command, which goes on from what is there, or name another --out"
            ) from None

    # ---- parts ----

    def part_rows(self, part: int) -> range:
        """Return the rows of a part."""
        return range(part * PART_ROWS, min((part + 1) * PART_ROWS, self.rows))

    def missing(self) -> list[int]:
        """Return the parts that are not there, ascending."""
        parts = range(-(-self.rows // PART_ROWS))
        there = self._there()
        return [part for part in parts if self._path(part).name not in there]

    def _there(self) -> set[str]:
        """Return the names of the parts that are written."""
        return {name for name in os.listdir(self.folder) if re.fullmatch(PART, name)}

    def write(self, part: int, rows: list[dict[str, Any]]) -> None:
        """Write a part; it appears whole or not at all. rows: values by their columns."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self.writable(), atomic_file(self._path(part)) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=self.schema), file)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"

    # ---- the output ----

    def merge(self) -> None:
        """Write `out` from all parts, and remove them. Raises UserError for a damaged part."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        metadata = {METADATA: json_digest(self.facts).encode()}
        parts = range(-(-self.rows // PART_ROWS))
        with self.writable(), atomic_file(self.out) as file:
            schema = self.schema.with_metadata(metadata)
            with pq.ParquetWriter(file, schema) as writer:
                for first in range(0, len(parts), GROUP_ROWS // PART_ROWS):
                    group = parts[first : first + GROUP_ROWS // PART_ROWS]
                    table = pa.concat_tables([self._read_part(part) for part in group])
                    writer.write_table(table.replace_schema_metadata(metadata))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_part(self, part: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self._path(part)
        try:
            table = pq.read_table(path, schema=self.schema, partitioning=None)
            if len(table) != len(self.part_rows(part)):
                raise ValueError(f"{len(table)} rows")
            return table
        except (OSError, pa.ArrowException, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"{path} is damaged ({reason}); remove it and run the same command"
            ) from None


def answer_schema(tasks: Iterable[str] = ()) -> Any:
    """Return the columns of the answers.

    image: path, URL, or split and row. label, score: the first answer; null where there is none.
    labels: all answers, as `predict --json` gives them. none_of_these: whether the picture is none
    of the classes; null for a model without a threshold. error: why there is no answer.

    tasks: names of the model's tasks, if it has several: then label_TASK, score_TASK and
    labels_TASK stand for each in place of label, score, labels and none_of_these.
    """
    import pyarrow as pa

    label, score = pa.field("label", pa.string()), pa.field("score", pa.float32())
    labels = pa.field("labels", pa.list_(pa.struct([label, score])))
    columns = (label, score, labels)
    answers = [field.with_name(f"{field.name}_{task}") for task in tasks for field in columns]
    image, error = pa.field("image", pa.string(), nullable=False), pa.field("error", pa.string())
    return pa.schema(
        [image, *(answers or [*columns, pa.field("none_of_these", pa.bool_())]), error]
    )


def count_answers(out: Path) -> dict[str, int]:
    """Return how many `pictures` a file of answers has, how many `errors`, and how many are
    `none_of_these`.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    counted = {"none_of_these", "error"} & set(pq.read_schema(out).names)
    table = pq.read_table(out, columns=sorted(counted))
    strangers = pc.sum(table["none_of_these"]).as_py() if "none_of_these" in counted else 0
    return {
        "pictures": len(table),
        "errors": len(table) - table["error"].null_count,
        "none_of_these": strangers or 0,
    }
