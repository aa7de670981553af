"""What a resumed run needs beyond the Trainer's own state."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from hf_cifar.training.trainer import CifarTrainer

FILE = "carried.json"


class ResumeState(TrainerCallback):
    """Carries over a resume what the Trainer itself starts anew: the loss summed since the last
    log, the clock, the average of the weights, how long nothing got better; and that there is
    nothing left to train.
    """

    def __init__(self, trainer: CifarTrainer) -> None:
        self.trainer, self.seconds_before, self.began = trainer, 0.0, time.perf_counter()
        self.resume_from: Path | None = None

    def save(self, folder: Path) -> None:
        t = self.trainer
        values = {
            "tr_loss": float(t._tr_loss).hex(),
            "total_loss": float(t._total_loss_scalar).hex(),
            "last_logged": t._globalstep_last_logged,
            "seconds": self.seconds(),
            "without_gain": t.early_stopping.early_stopping_patience_counter
            if t.early_stopping
            else 0,
        }
        path = folder / (
            FILE if t.args.process_index == 0 else f"carried-{t.args.process_index}.json"
        )
        path.write_text(json.dumps(values))

    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began = time.perf_counter()
        if self.resume_from is None:
            return
        if (
            state.best_model_checkpoint
        ):  # the run folder may have been moved, or is named from another place
            state.best_model_checkpoint = str(
                self.trainer.root / Path(state.best_model_checkpoint).name
            )
        path = self.resume_from / (
            FILE if args.process_index == 0 else f"carried-{args.process_index}.json"
        )
        if path.is_file():
            t, values = self.trainer, json.loads(path.read_text())
            t._tr_loss.fill_(float.fromhex(values["tr_loss"]))
            t._total_loss_scalar = float.fromhex(values["total_loss"])
            t._globalstep_last_logged, t._initial_global_step = values["last_logged"], 0
            self.seconds_before = values["seconds"]
            if (stopping := t.early_stopping) is not None:
                stopping.early_stopping_patience_counter = values["without_gain"]
                control.should_training_stop = (
                    values["without_gain"] >= stopping.early_stopping_patience
                )
        if self.trainer.average is not None:
            self.trainer.average.load(self.resume_from)
        if state.global_step >= state.max_steps:
            control.should_training_stop = True
