#!/usr/bin/env bash
# Train on the nodes of a SLURM allocation; queue the job again when its time runs out, until the
# training is done.
#
#   sbatch --nodes 2 --gpus-per-node 8 --time 4:00:00 scripts/slurm_train.sh \
#       configs/cityscapes/hrnet_ocr_hierarchical.yaml data.root=/data/cityscapes
#
# Two minutes before the end SLURM signals this script, which asks torchrun to stop: the ranks
# finish their step, save, and end. --resume then goes on from there; in a folder without a run it
# begins one. PYTHON names the interpreter, PORT the port at which the nodes meet.
#SBATCH --job-name hmsa
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 64
#SBATCH --signal B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode append
set -uo pipefail

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
  sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p}' "$0"
  exit 0
fi
if [ "$#" -eq 0 ]; then
  echo "usage: sbatch --nodes N --gpus-per-node G scripts/slurm_train.sh CONFIG.yaml" \
    "[section.key=value ...]" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit 2

nodes=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?start this script with sbatch}")
head=$(head -n 1 <<<"$nodes")

# srun hands SIGTERM on to torchrun, and torchrun to its ranks.
requeue=no
stop_and_requeue() {
  requeue=yes
  kill -TERM "$step"
}
trap stop_and_requeue USR1

srun "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --max-restarts 3 --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-endpoint "$head:${PORT:-29500}" \
  train.py "$@" --resume &
step=$!

# A signal ends `wait` before the step has ended.
while true; do
  wait "$step"
  status=$?
  kill -0 "$step" 2>/dev/null || break
done

# A training that failed by itself would only fail again.
if [ "$requeue" = yes ] && [ "$status" -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
