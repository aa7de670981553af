"""The command `hf-cifar`: read the command line, run one command, end with an exit code.

Modules that import torch are imported by a command's `run`, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_cifar.cli import (
    adapt,
    audit,
    calibrate,
    compare,
    data,
    demo,
    evaluate,
    export,
    few_shot,
    find_lr,
    label,
    monitor,
    plan,
    predict,
    push,
    recipes,
    stress,
    train,
    verify,
)
from hf_cifar.cli.options import CommandParser, parse_overrides
from hf_cifar.cli.output import OneLineFormatter, prepare_output, say
from hf_cifar.distributed import rank
from hf_cifar.errors import HfCifarError, Interrupted
from hf_cifar.text import visible

COMMANDS = (
    train,
    find_lr,
    plan,
    evaluate,
    predict,
    adapt,
    stress,
    calibrate,
    compare,
    monitor,
    few_shot,
    label,
    audit,
    export,
    demo,
    push,
    verify,
    recipes,
    data,
)
MOST_CHARACTERS = 2000  # of an error message


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit.

    Exit codes: 0 done; 1 a failure of another kind than bad input (a push, a refuted claim, a loss
    that diverged); 2 bad input; 128 + n ended by signal n, as a shell reports it.
    """
    prepare_output()
    signal.signal(signal.SIGTERM, _stop)
    code: Any
    try:
        code = run(sys.argv[1:] if argv is None else argv)
    except SystemExit as end:  # of argparse, or of `_stop`
        code = end.code
    try:
        say("", end="")  # help may still be buffered
    except HfCifarError as error:
        code = _fail(str(error), error.exit_code)
    # From here on SIGTERM, which torchrun sends when another process failed, just ends the process:
    # an exception while Python shuts down would print a traceback.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
    """Run the command in this process and return its exit code."""
    _log_to_stderr()
    try:
        args = parse(argv)
        return args.run(args) or 0
    except HfCifarError as error:
        if isinstance(error, Interrupted) and rank():
            return error.exit_code  # a signal stops all processes, and the first one reports it
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            name = visible(error.filename, most=80)
            return _fail(f"{name}: {error.strerror}; write a shorter one", 2)
        if (reason := _lost_connection(error)) is not None:
            message = (
                "another process of this run ended or did not answer; its own message says why"
            )
            # The launcher shows the message of the process that failed first, not of this one.
            return _fail(f"{message} ({reason})", 1, tell_launcher=False)
        _write_launcher_error(f"{type(error).__name__}: {error}")
        raise  # a bug, which needs its traceback


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line.

    `run` is the command, a function of the options that returns an exit code or None; `keys` holds
    the recipe keys of a command that takes them. Raises UserError for words that it does not take.
    """
    parser = CommandParser(
        "hf-cifar",
        description="Fine-tune a pretrained vision backbone on CIFAR-10 or on your own pictures.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    # A recipe command takes any recipe key, and every other command knows all of its options.
    args, words = parser.parse_known_args(argv)
    if words and not args.takes_keys:
        parser.error(f"unrecognized arguments: {visible(' '.join(words), most=200)}")
    args.keys = parse_overrides(words)
    return args


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    # Every process logs the same; the first one is enough.
    logging.getLogger("hf_cifar").setLevel(logging.ERROR if rank() else logging.INFO)


def _stop(signal_number: int, _: object) -> None:
    """End the process by an exception, so that temporary folders are removed on the way."""
    if not rank():
        line = f"hf-cifar: stopped by {signal.Signals(signal_number).name}\n"
        with contextlib.suppress(OSError):  # print could fail here: it may be what was interrupted
            os.write(2, line.encode())
    sys.exit(128 + signal_number)


def _lost_connection(error: Exception) -> str | None:
    """Return why torch lost another process of this run; None for any other error."""
    import torch

    lost_by_nccl = isinstance(error, torch.distributed.DistBackendError)
    if not lost_by_nccl and "gloo/transport" not in str(error):
        return None
    return str(error).splitlines()[0].rpartition("] ")[2].partition(". This is")[0]


def _fail(message: str, code: int, tell_launcher: bool = True) -> int:
    if message:
        process = f"process {rank()}: " if rank() else ""
        line = f"hf-cifar: {process}{visible(' '.join(message.split()), MOST_CHARACTERS)}"
        with contextlib.suppress(OSError):  # standard error may be full or closed
            sys.stderr.write(f"{line}\n")  # in one piece: other processes write there, too
        if tell_launcher:
            _write_launcher_error(line)
    return code


def _write_launcher_error(message: str) -> None:
    """Write why this process fails where torchrun, in its report at the end, looks for it."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        entry = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": entry}))
