"""What a resumed run needs beyond the state that the Trainer itself saves."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_cifar.files import write_json

if TYPE_CHECKING:
    from hf_cifar.training.trainer import CifarTrainer


class ResumeState(TrainerCallback):
    """Restore on resume what the Trainer starts anew: the loss summed since the last log, the
    clock, the average of the weights and the count of early stopping.

    The Trainer's own `restore_callback_states_from_checkpoint` would restore the count, but also
    the control state of the moment: a run stopped by a signal would stop again at once.

    checkpoint: the checkpoint to resume from, or None.
    """

    def __init__(self, trainer: CifarTrainer) -> None:
        self.trainer = trainer
        self.checkpoint: Path | None = None
        self.seconds_before, self.start = 0.0, time.perf_counter()

    def save(self, folder: Path) -> None:
        """Write the state of this process into a checkpoint's folder."""
        trainer, stopping = self.trainer, self.trainer.early_stopping
        values = {
            "tr_loss": float(trainer._tr_loss).hex(),
            "total_loss": float(trainer._total_loss_scalar).hex(),
            "last_logged": trainer._globalstep_last_logged,
            "seconds": self.seconds(),
            "evaluations_without_gain": stopping.early_stopping_patience_counter if stopping else 0,
        }
        write_json(self._path(folder), values)

    def seconds(self) -> float:
        """Return the seconds of training up to now, those before a resume included."""
        return self.seconds_before + time.perf_counter() - self.start

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.start = time.perf_counter()
        if self.checkpoint is None:
            return
        if state.best_model_checkpoint:  # the run folder may have moved since
            best = self.trainer.root / Path(state.best_model_checkpoint).name
            state.best_model_checkpoint = str(best)
        if self._path(self.checkpoint).is_file():
            self._restore(json.loads(self._path(self.checkpoint).read_text()), control)
        if self.trainer.average is not None:
            self.trainer.average.load(self.checkpoint)
        if state.global_step >= state.max_steps:
            control.should_training_stop = True

    def _restore(self, values: dict[str, Any], control: TrainerControl) -> None:
        trainer, stopping = self.trainer, self.trainer.early_stopping
        trainer._tr_loss.fill_(float.fromhex(values["tr_loss"]))
        trainer._total_loss_scalar = float.fromhex(values["total_loss"])
        trainer._globalstep_last_logged = values["last_logged"]
        trainer._initial_global_step = 0
        self.seconds_before = values["seconds"]
        if stopping is not None:
            stopping.early_stopping_patience_counter = values["evaluations_without_gain"]
            control.should_training_stop = (
                values["evaluations_without_gain"] >= stopping.early_stopping_patience
            )

    def _path(self, folder: Path) -> Path:
        process = self.trainer.args.process_index
        return folder / ("resume_state.json" if process == 0 else f"resume_state-{process}.json")
