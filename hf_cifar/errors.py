"""The failures that end a command with one line and an exit code instead of a traceback."""

from __future__ import annotations

import signal


class HfCifarError(Exception):
    """A failure that is told in one line: what was wrong, where, and what to do about it."""

    exit_code = 1


class UserError(HfCifarError):
    """The input was wrong. The message names the file, key or row, and the remedy."""

    exit_code = 2


class Diverged(HfCifarError):
    """The loss was not finite. The message names the step, the learning rate and the checkpoint."""


class PushError(HfCifarError):
    """A push failed although its input was right. The run is whole and the push can be repeated."""


class Interrupted(HfCifarError):
    """SIGTERM or SIGINT stopped the run at a checkpoint.

    signal_number: number of the signal; the exit code is 128 more, as a shell reports it.
    newest_checkpoint: name of the newest checkpoint, or None.
    """

    def __init__(self, signal_number: int, newest_checkpoint: str | None) -> None:
        outcome = "there is no checkpoint to resume from"
        if newest_checkpoint:
            outcome = f"{newest_checkpoint} is saved; run the same command to resume from it"
        super().__init__(f"{signal.Signals(signal_number).name}: {outcome}")
        self.exit_code = 128 + signal_number
