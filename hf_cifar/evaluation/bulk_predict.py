"""`hf-cifar predict --out`: answer any number of pictures, in batches, in one or several processes.

Threads read and shrink pictures while the model answers those before them. Of P processes each
answers every Pth part that is missing, and the first one makes one file of all parts.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hf_cifar.data.decode_split import in_order
from hf_cifar.distributed import (
    all_processes,
    cores_for_each_process,
    from_first_process,
    rank,
    world_size,
)
from hf_cifar.errors import UserError
from hf_cifar.evaluation.answer_parts import (
    AnswerParts,
    count_answers,
    parts_folder,
)
from hf_cifar.evaluation.answers import Answerer
from hf_cifar.evaluation.bulk_layout import choose_layout
from hf_cifar.evaluation.classifier import Classifier, load_classifier
from hf_cifar.evaluation.picture_list import Pictures, find_pictures
from hf_cifar.evaluation.picture_reader import PictureReader, ReadPicture
from hf_cifar.evaluation.task_answers import TaskAnswerer
from hf_cifar.files import file_digest, json_digest
from hf_cifar.models.model_files import KNOWN_PICTURES, ModelFiles
from hf_cifar.training.launch_checks import check_processes, meet_after_restart
from hf_cifar.training.precision import Precision
from hf_cifar.training.progress import image_progress

log = logging.getLogger(__name__)
DOWNLOADS = 8  # at a time, at least; a server's answer is waited for, not worked for
LONGEST_WAIT = 24 * 3600  # seconds that the first process waits for the slowest
NOT_FINITE = "the model's outputs are not finite for it"


def bulk_predict(
    model: str,
    words: list[str],
    out: Path,
    *,
    top: int,
    split: str | None = None,
    batch_size: int | None = None,
    precision: str = "fp32",
    on_bad_image: str = "skip",
) -> dict[str, int]:
    """Write the answers to pictures to the parquet file `out`, a row for each in their order (see
    `answer_schema`), and return `count_answers` of it. Every process of a launcher calls this.

    A command that was stopped goes on from the parts beside `out`. In float32 the answers are those
    of `predict` to 1e-6.

    words, split: as in `find_pictures`. top: how many classes are named. batch_size: pictures at a
    time; None for what `choose_layout` says.
    precision: fp32, bf16, or auto for what is fastest here. on_bad_image: skip, which lists a
    picture that can't be read with its error, or error.
    Raises UserError for a model or pictures that can't be had, for an `out` or parts of other
    answers, and with on_bad_image error for the first picture without an answer.
    """
    _meet()
    if out.suffix != ".parquet":
        raise UserError(f"--out {out}: name a file that ends in .parquet")
    classifier = load_classifier(model, several_tasks=True, several_labels=True)
    skip = {out.resolve(), parts_folder(out).resolve()}
    listed = find_pictures(words, split, classifier.pixel_range, skip)
    facts = {
        "model": from_first_process("" if rank() else digest_of(classifier.files)),
        "list of pictures": listed.fingerprint,
        "--top": top,
        "--precision": precision,
        "--on_bad_image": on_bad_image,
    }
    if not all_processes(facts == from_first_process(facts)):
        raise UserError(
            "the processes see different pictures; let all of them see the same files, and leave"
            " those as they are"
        )
    parts = AnswerParts(out, facts, classifier.tasks)
    if from_first_process(not rank() and parts.finished()):
        log.info("%s holds these answers already", out)
        return count_answers(out)
    with contextlib.nullcontext() if rank() else parts.claimed():
        # The first process leaves the copy of a data set in the folder for the others.
        pictures = None if rank() else listed.open(parts.data_folder)
        layout: list[Any] = []
        if pictures is not None:
            layout = parts.layout(partial(choose_layout, classifier, pictures, precision))
        layout = from_first_process(layout)
        pictures = pictures or listed.open(parts.data_folder)
        parts.rows = len(pictures)
        missing = from_first_process([] if rank() else parts.missing())
        if before := parts.rows - sum(len(parts.part_rows(part)) for part in missing):
            log.info("%s: %d of %d pictures were answered before", out, before, parts.rows)
        bf16, channels_last, fitting_batch = layout
        make_answerer = TaskAnswerer if classifier.tasks else Answerer
        answerer = make_answerer(classifier, top, Precision(bf16, channels_last))
        threads = cores_for_each_process()
        _Process(classifier, pictures, answerer, on_bad_image == "error").answer_parts(
            parts,
            missing[rank() :: world_size()],
            batch_size or fitting_batch,
            max(threads, DOWNLOADS) if listed.has_urls else threads,
        )
        all_processes(True)
        if not rank():
            if lacking := parts.missing():
                raise UserError(
                    f"{parts.folder} lacks {len(lacking)} parts of other processes; let all write"
                    " to the same disk, and run the same command"
                )
            parts.merge()
        all_processes(True)
    return count_answers(out)


def _meet() -> None:
    """Let the processes of a launcher meet, each with a GPU of its own where there are GPUs.

    They exchange a few words only, which gloo carries between any machines.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if warning := check_processes(processes):
        log.warning(warning)
    if processes == 1:
        return
    meet_after_restart("gloo", LONGEST_WAIT)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=LONGEST_WAIT))
    PartialState(cpu=not torch.cuda.is_available())  # chooses the GPU


def digest_of(files: ModelFiles) -> str:
    """Return a SHA-256 over all of a model that its answers depend on."""
    names = [*files.weights, KNOWN_PICTURES]
    present = [name for name in names if (files.folder / name).is_file()]
    weights = {name: file_digest(files.folder / name) for name in present}
    return json_digest([weights, files.configs])


class _Process:
    """Answers one process's share of the pictures.

    strict: end at the first picture without an answer.
    """

    def __init__(
        self,
        classifier: Classifier,
        pictures: Pictures,
        answerer: Answerer | TaskAnswerer,
        strict: bool,
    ) -> None:
        self.pictures, self.answerer, self.strict = pictures, answerer, strict
        self.reader = PictureReader(classifier, pictures)

    def answer_parts(
        self, parts: AnswerParts, mine: list[int], batch_size: int, threads: int
    ) -> None:
        """Answer the pictures of the parts `mine` and write each part.

        Batches don't reach over the end of a part, so they are the same after a stop and in any
        number of processes. Raises UserError if `strict`, for the first picture without an answer.
        """
        numbers = chain.from_iterable(parts.part_rows(part) for part in mine)
        pictures = in_order(self.reader.picture, numbers, threads, ahead=threads + 2 * batch_size)
        total = sum(len(parts.part_rows(part)) for part in mine)
        title = f"answers, process 1 of {world_size()}" if world_size() > 1 else "answers"
        with image_progress(title, total, enabled=not rank()) as progress:
            for part in mine:
                part_rows = parts.part_rows(part)
                rows: list[dict[str, Any]] = []
                for first in range(0, len(part_rows), batch_size):
                    batch = part_rows[first : first + batch_size]
                    rows += self._answers(batch, list(islice(pictures, len(batch))))
                    progress.update(len(batch))
                parts.write(part, rows)

    def _answers(
        self, rows: Sequence[int], pictures: list[ReadPicture | str]
    ) -> Iterator[dict[str, Any]]:
        """Yield the row of each picture of a batch, by the columns that have a value. Raises
        UserError if `strict`.
        """
        readable = [picture for picture in pictures if isinstance(picture, ReadPicture)]
        answers: Iterator[Any] = iter(())
        if readable:
            with torch.inference_mode():
                inputs = self.reader.inputs(readable)
            answers = iter(self.answerer.answer(inputs))
        for row, picture in zip(rows, pictures, strict=True):
            name = _text(self.pictures.name(row))
            error = picture if isinstance(picture, str) else None
            answer = None if error else next(answers)
            if answer is not None:
                yield {"image": name} | answer.columns()
                continue
            error = _text(error or NOT_FINITE)
            if self.strict:
                raise UserError(
                    f"{name}: {error}; repair or remove it, or leave --on_bad_image error out to"
                    " have it listed"
                )
            yield {"image": name, "error": error}


def _text(text: str) -> str:
    """Return text that is valid Unicode; names of files need not be."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
