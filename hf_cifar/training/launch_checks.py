"""Whether a run has the processes that its launcher was asked for, and how they meet after a
restart.

On a CPU, `accelerate launch` starts one process where it was asked for several, and says nothing:
the run would train with a smaller batch than its recipe says. The environment does not tell what
was asked, so the launcher's own command line is read.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from hf_cifar.errors import UserError


@dataclass(frozen=True)
class LaunchRequest:
    """What `accelerate launch` was asked to start: `processes` in all, on `machines` machines, each
    with the command line `script`.
    """

    processes: int
    machines: int
    script: list[str]


def launch_words(command: list[str]) -> list[str] | None:
    """Return what follows `accelerate launch` in a process's command line, or None where that is
    another program.
    """
    names = [Path(word).name for word in command[:4]]  # an interpreter and `-m` may come first
    for position, name in enumerate(names):
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return command[position + 1 :]
        by_name = name in ("accelerate", "accelerate.commands.accelerate_cli")
        if by_name and names[position + 1 : position + 2] == ["launch"]:
            return command[position + 2 :]
    return None


def launch_request() -> LaunchRequest | None:
    """Return what the `accelerate launch` above this process was asked for, as its own parser and
    its own loader of config files read it.

    None where there is no such launcher, or where it was left to count the GPUs.
    """
    import psutil

    try:
        parents = ((p, launch_words(p.cmdline())) for p in psutil.Process().parents())
        launcher = next(((p.cwd(), words) for p, words in parents if words is not None), None)
    except psutil.Error:  # another user's process, or one that has just ended
        return None
    if launcher is None:
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    folder, words = launcher
    args = launch_command_parser().parse_args(words)
    processes, machines = args.num_processes, args.num_machines
    config_file = Path(folder) / (args.config_file or default_config_file)
    # With `--cpu`, accelerate does not read its default config file.
    if config_file.is_file() and (args.config_file or not args.cpu):
        config = load_config_from_file(str(config_file))
        processes, machines = processes or config.num_processes, machines or config.num_machines
    script = [*(["-m"] if args.module else []), args.training_script, *args.training_script_args]
    return LaunchRequest(processes, machines or 1, script) if processes else None


def meet_after_restart(backend: str | None, timeout: float) -> None:
    """Let the processes of a restart (`--max_restarts`) meet under names of their own.

    The launcher keeps one store for all starts, and torch (2.15) looks for the same names there: a
    process found the address of one that had died, and the restarted run failed.

    backend: of torch.distributed; None for the device's own. timeout: seconds to wait for the other
    processes.
    """
    restarts, environment = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ
    if restarts == "0" or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    import torch
    from torch import distributed

    if distributed.is_initialized():
        return
    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    processes, wait = int(environment["WORLD_SIZE"]), timedelta(seconds=timeout)
    store = distributed.TCPStore(
        environment["MASTER_ADDR"],
        int(environment["MASTER_PORT"]),
        processes,
        is_master=False,
        timeout=wait,
    )
    distributed.init_process_group(
        backend,
        store=distributed.PrefixStore(f"start {restarts}", store),
        rank=int(environment["RANK"]),
        world_size=processes,
        timeout=wait,
    )


def check_processes(processes: int) -> str | None:
    """Return what is suspicious about a run of so many processes, as a warning, or None.

    Raises UserError where `accelerate launch` was asked for more processes than it started.
    """
    request = launch_request()
    if request is not None and request.processes > processes:
        per_machine = str(request.processes // request.machines)
        line = shlex.join(["torchrun", "--nproc_per_node", per_machine, *request.script])
        raise UserError(
            f"accelerate launch: asked for {request.processes} processes, started {processes};"
            f" on CPUs it starts one and says nothing; use `{line}`"
        )
    tasks = os.environ.get("SLURM_NTASKS", "")
    if tasks.isdigit() and int(tasks) > processes:
        return (
            f"Slurm has {tasks} tasks for this job (SLURM_NTASKS), and this run is {processes} of"
            " them: let `srun` start one `accelerate launch` on each node, as accelerate/slurm.sh"
            " does (`hf-cifar recipes copy accelerate`)"
        )
    return None
