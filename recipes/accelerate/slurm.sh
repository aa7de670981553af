#!/usr/bin/env bash
# Several nodes with eight GPUs each under Slurm, with one launcher on each node:
#   sbatch --nodes 2 accelerate/slurm.sh vit_huge_14/full
# A job that is killed and requeued resumes from its last checkpoint.
#SBATCH --job-name=hf-cifar
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail
read -r main < <(scontrol show hostnames "$SLURM_JOB_NODELIST")  # the first node
# Seconds for the last checkpoint, within the 120 of --signal; torch's default is 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
export MAIN="$main" RECIPE="${1:?name a recipe}" PROCESSES=$((SLURM_NNODES * 8))
srun bash -c 'exec accelerate launch --config_file accelerate/ddp_nodes.yaml \
  --num_machines "$SLURM_NNODES" --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$MAIN" --main_process_port 29500 \
  -m hf_cifar train "$RECIPE" --gradient_accumulation_steps 1'
