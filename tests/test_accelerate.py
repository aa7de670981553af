"""accelerate's configurations are what accelerate reads, and a run that got fewer processes than were asked for is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from hf_cifar import cli
from hf_cifar.launch import check_processes, launch_words
from hf_cifar.recipe import packaged, recipe_names

ROOT = Path(__file__).parent.parent
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


def test_all_configs_are_there_and_are_no_recipes(tmp_path, monkeypatch, capsys):
    assert {p.stem for p in CONFIGS} == set(WANT) and not any("accelerate" in name for name in recipe_names())
    monkeypatch.chdir(tmp_path)
    assert cli.run(["recipes", "copy", "accelerate"]) == 0
    copied = {p.name for p in (tmp_path / "accelerate").iterdir()}
    assert copied == {*(p.name for p in CONFIGS), "slurm.sh"}
    assert subprocess.run(["bash", "-n", "accelerate/slurm.sh"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/usr/bin/python3", "/env/bin/accelerate", "launch", "--cpu", "-m", "x"], ["--cpu", "-m", "x"]),
        (["/env/bin/accelerate-launch", "x.py"], ["x.py"]),
        (["python", "-m", "accelerate.commands.launch", "x.py"], ["x.py"]),
        (["python", "-m", "accelerate.commands.accelerate_cli", "launch", "x.py"], ["x.py"]),
        (["python", "-m", "hf_cifar", "train", "accelerate", "launch"], None),
        (["accelerate", "config"], None),
        ([], None),
    ],
)
def test_a_launcher_is_known_by_its_command_line(command, words):
    assert launch_words(command) == words


def test_slurm_tasks_that_are_not_ours_are_told(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert "Slurm has 4 tasks" in (check_processes(1) or "")
    assert check_processes(4) is None


def test_fewer_processes_than_asked_for_are_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dataset_name: sample\nfrom_scratch: true\nmodel_config: {model_type: vit}\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    config = packaged("recipes") / "accelerate" / "cpu_2.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["-m", "hf_cifar", "train", str(recipe), "--output_dir", str(tmp_path / "run"), "--seed", "7"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    line = next(line for line in done.stderr.splitlines() if line.startswith("hf-cifar: "))
    assert "asked for 2 processes, started 1" in line and f"torchrun --nproc_per_node 2 -m hf_cifar train {recipe}" in line
    assert not (tmp_path / "run").exists()
