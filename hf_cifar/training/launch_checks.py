"""How many processes this run is, whether that is what its launcher was asked for, and how they
meet when started again.

`accelerate launch` starts one process where it was asked for several on a CPU, and says nothing:
the run would then train with a smaller batch than its recipe says. What was asked is not in the
environment, so the launcher's own command line is read.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from hf_cifar.errors import UserError


@dataclass(frozen=True)
class Asked:
    """What `accelerate launch` was asked to start: so many processes on so many machines, each with
    `words`.
    """

    processes: int
    machines: int
    words: list[str]


def launch_words(command: list[str]) -> list[str] | None:
    """What follows `accelerate launch` in a process's command line; None where it is another
    program.
    """
    names = [Path(word).name for word in command[:4]]  # an interpreter and `-m` may come first
    for i, name in enumerate(names):
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return command[i + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and names[
            i + 1 : i + 2
        ] == ["launch"]:
            return command[i + 2 :]
    return None


def asked_of_accelerate() -> Asked | None:
    """What the `accelerate launch` above this process was asked for, by its own parser and its own
    loader of config files; None where there is no such launcher, or where it was left to count the
    GPUs.
    """
    import psutil

    try:
        above = ((p, launch_words(p.cmdline())) for p in psutil.Process().parents())
        process, words = next(((p, w) for p, w in above if w is not None), (None, []))
        folder = process.cwd() if process else ""
    except psutil.Error:  # another user's process, or one that has just ended
        return None
    if process is None:
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    args = launch_command_parser().parse_args(words)
    processes, machines = args.num_processes, args.num_machines
    file = Path(folder) / (args.config_file or default_config_file)
    if file.is_file() and (
        args.config_file or not args.cpu
    ):  # where `--cpu` is given, accelerate's own default is not read
        config = load_config_from_file(str(file))
        processes, machines = processes or config.num_processes, machines or config.num_machines
    script = [*(["-m"] if args.module else []), args.training_script, *args.training_script_args]
    return Asked(processes, machines or 1, script) if processes else None


def meet_again(backend: str, timeout: float) -> None:
    """Where a launcher starts the processes once more (`--max_restarts`), let them meet under names
    of this start.

    The launcher keeps one store for all starts, and torch (2.15) looks there under the same names:
    a process found the address of one that had died, and the restarted run failed.
    """
    again, env = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ
    if again == "0" or env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    from torch import distributed

    if distributed.is_initialized():
        return
    world, wait = int(env["WORLD_SIZE"]), timedelta(seconds=timeout)
    store = distributed.TCPStore(
        env["MASTER_ADDR"], int(env["MASTER_PORT"]), world, is_master=False, timeout=wait
    )
    named = distributed.PrefixStore(f"start {again}", store)
    distributed.init_process_group(
        backend, store=named, rank=int(env["RANK"]), world_size=world, timeout=wait
    )


def check_processes(processes: int) -> str | None:
    """What is suspicious about a run of so many `processes`, for a warning. Raises UserError where
    `accelerate launch` was asked for more than it started.
    """
    asked = asked_of_accelerate()
    if asked is not None and asked.processes > processes:
        line = shlex.join(
            ["torchrun", "--nproc_per_node", str(asked.processes // asked.machines), *asked.words]
        )
        raise UserError(
            f"accelerate launch: asked for {asked.processes} processes, started {processes}; on CPUs it starts one and says"
            f" nothing; use `{line}`"
        )
    tasks = os.environ.get("SLURM_NTASKS", "")
    if tasks.isdigit() and int(tasks) > processes:
        return (
            f"Slurm has {tasks} tasks for this job (SLURM_NTASKS), and this run is {processes} of them: let `srun` start one"
            " `accelerate launch` a node, as accelerate/slurm.sh does (`hf-cifar recipes copy accelerate`)"
        )
    return None
