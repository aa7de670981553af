"""accelerate reads the packaged configurations, and a run that got fewer processes than were asked
for is refused.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from torch import distributed

from hf_cifar.cli import main
from hf_cifar.recipe.load import load_recipe
from hf_cifar.recipe.recipe import packaged, recipe_names
from hf_cifar.training.launch_checks import check_processes, launch_words, meet_after_restart

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((packaged("recipes") / "accelerate").glob("*.yaml"))
WANT = {  # kind, processes, machines
    "cpu": ("NO", 1, 1),
    "cpu_2": ("MULTI_CPU", 2, 1),
    "gpu": ("NO", 1, 1),
    "ddp_8": ("MULTI_GPU", 8, 1),
    "ddp_nodes": ("MULTI_GPU", 16, 2),
    "fsdp2_8": ("FSDP", 8, 1),
    "fsdp2_nodes": ("FSDP", 16, 2),
    "zero2_8": ("DEEPSPEED", 8, 1),
    "zero3_8": ("DEEPSPEED", 8, 1),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_each_config(path):
    config = load_config_from_file(str(path))
    assert (config.distributed_type, config.num_processes, config.num_machines) == WANT[path.stem]
    assert config.use_cpu == path.stem.startswith("cpu")
    if config.distributed_type == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
    if config.distributed_type == "DEEPSPEED":
        assert config.deepspeed_config["zero_stage"] == int(path.stem[4])
    assert path.read_text().startswith("# ")


def test_all_configs_are_packaged_and_are_no_recipes(tmp_path, monkeypatch, capsys):
    assert {p.stem for p in CONFIGS} == set(WANT) and not any(
        "accelerate" in name for name in recipe_names()
    )
    monkeypatch.chdir(tmp_path)
    assert main.run(["recipes", "copy", "accelerate"]) == 0
    copied = {p.name for p in (tmp_path / "accelerate").iterdir()}
    assert copied == {*(p.name for p in CONFIGS), "slurm.sh"}
    assert subprocess.run(["bash", "-n", "accelerate/slurm.sh"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            ["/usr/bin/python3", "/env/bin/accelerate", "launch", "--cpu", "-m", "x"],
            ["--cpu", "-m", "x"],
        ),
        (["/env/bin/accelerate-launch", "x.py"], ["x.py"]),
        (["python", "-m", "accelerate.commands.launch", "x.py"], ["x.py"]),
        (["python", "-m", "accelerate.commands.accelerate_cli", "launch", "x.py"], ["x.py"]),
        (["python", "-m", "hf_cifar", "train", "accelerate", "launch"], None),
        (["accelerate", "config"], None),
        ([], None),
    ],
)
def test_a_launcher_is_recognised_by_its_command_line(command, words):
    assert launch_words(command) == words


def test_slurm_tasks_beside_this_run_are_warned_about(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert "Slurm has 4 tasks" in (check_processes(1) or "")
    assert check_processes(4) is None


def test_fewer_processes_than_asked_for_are_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: sample\nfrom_scratch: true\nmodel_config: {model_type: vit}\n")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    config = packaged("recipes") / "accelerate" / "cpu_2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += [
        "-m",
        "hf_cifar",
        "train",
        str(recipe),
        "--output_dir",
        str(tmp_path / "run"),
        "--seed",
        "7",
    ]
    done = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    line = next(line for line in done.stderr.splitlines() if line.startswith("hf-cifar: "))
    assert (
        "asked for 2 processes, started 1" in line
        and f"torchrun --nproc_per_node 2 -m hf_cifar train {recipe}" in line
    )
    assert not (tmp_path / "run").exists()


def test_slurms_launch_line_parses_and_keeps_the_batch(tmp_path):
    folder, line = tmp_path / "bin", tmp_path / "line"
    folder.mkdir()
    for name, body in {
        "scontrol": "echo node-a; echo node-b",
        "srun": 'exec "$@"',
        "accelerate": f'env > {line}.env; printf "%s\\n" "$@" > {line}',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_NODEID": "1"}
    environment = os.environ | slurm | {"PATH": f"{folder}:{os.environ['PATH']}"}
    script = packaged("recipes") / "accelerate" / "slurm.sh"
    subprocess.run(["bash", str(script), "vit_huge_14/full"], env=environment, check=True)
    words = line.read_text().splitlines()
    args = launch_command_parser().parse_args(words[1:])
    assert words[0] == "launch" and args.module and args.training_script == "hf_cifar"
    config = load_config_from_file(str(packaged("recipes") / args.config_file))
    assert (args.num_machines, args.num_processes, args.machine_rank) == (
        2,
        config.num_processes,
        1,
    )
    assert args.main_process_ip == "node-a" and args.main_process_port
    typed = main.parse(args.training_script_args)
    packaged_recipe = load_recipe(typed.recipe).training
    launched = load_recipe(typed.recipe, typed.keys).training
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    batch_of_process = math.prod(launched[key] for key in keys)
    whole_batch = math.prod(packaged_recipe[key] for key in keys)
    assert batch_of_process * args.num_processes == whole_batch
    written = (tmp_path / "line.env").read_text()
    timeout = int(re.search(r"^TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)$", written, re.M)[1])
    slurm_kills_after = int(re.search(r"--signal=TERM@(\d+)", script.read_text())[1])
    assert 30 < timeout < slurm_kills_after
    without_recipe = ["bash", str(script)]
    done = subprocess.run(without_recipe, env=environment, capture_output=True, check=False)
    assert done.returncode != 0


def test_processes_of_a_restart_meet_under_names_of_their_own(monkeypatch):
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    launcher = distributed.TCPStore("127.0.0.1", 0, is_master=True)
    environment |= {"MASTER_PORT": str(launcher.port), "TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    meet_after_restart("gloo", 5)
    assert not distributed.is_initialized()  # the first start is left to torch and accelerate
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    meet_after_restart("gloo", 5)
    try:
        launcher.set("address", "of a process that died")
        store = distributed.distributed_c10d._get_default_store()
        store.set("own", "1")
        assert distributed.get_backend() == "gloo" and store.check(["own"])
        assert not store.check(["address"]) and not launcher.check(["own"])
    finally:
        distributed.destroy_process_group()
