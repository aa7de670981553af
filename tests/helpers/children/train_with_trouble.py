"""`hf-cifar train ...` in several processes, of which one or all get into trouble.

train_with_trouble.py train ... with TROUBLE in the environment, one of:
    unreadable RANK: this process's cache folder is a file.
    raise RANK: the fourth step runs out of memory.
    die RANK: the eighth step of the first start is killed.
    signal RANK NUMBER TARGET: the second step sends a signal to `itself` or to the `launcher`.
    slow RANK: the first plot takes 12 seconds.
"""

import os
import signal
import sys
import tempfile
import time
from typing import Any

from transformers import TrainerCallback

TROUBLE, RANK, *MORE = os.environ["TROUBLE"].split() or ("", "")


class Trouble(TrainerCallback):
    """Does before a step what TROUBLE says."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if TROUBLE == "raise" and step == 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if TROUBLE == "die" and step == 7 and first_start:
            os.kill(os.getpid(), signal.SIGKILL)
        if TROUBLE == "signal" and step == 1:
            number, target = MORE
            os.kill(os.getppid() if target == "launcher" else os.getpid(), int(number))
        if TROUBLE == "signal" and step >= 1:
            time.sleep(0.7)


def be_slow_once(event: str, args: tuple, waited: list[bool] = []) -> None:  # noqa: B006
    if event == "open" and str(args[0]).endswith(".png") and not waited:
        waited.append(True)
        time.sleep(12)


if RANK in (os.environ["RANK"], "any"):
    if TROUBLE == "unreadable":
        os.environ["HF_CIFAR_CACHE"] = tempfile.NamedTemporaryFile(delete=False).name  # noqa: SIM115
    if TROUBLE == "slow":
        sys.addaudithook(be_slow_once)
    from helpers.watching import add_trainer_callbacks

    add_trainer_callbacks(Trouble())

from hf_cifar.cli.main import main  # noqa: E402

main()
