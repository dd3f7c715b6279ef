#!/bin/bash
# An elastic run under Slurm: sbatch configs/slurm.sh. One task per machine, each an agent with its workers.
# A machine that fails does not end the job (--no-kill, --kill-on-bad-exit=0); further machines join from another job
# that is submitted with the same RUN. Before preemption or the time limit Slurm warns this script, which has the nodes
# leave gracefully and the job queued anew.
#SBATCH --job-name=train
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --no-kill
#SBATCH --signal=B:USR1@120
set -euo pipefail

RUN="${RUN:-slurm-${SLURM_JOB_ID}}"
ETCD="${DTF_ETCD_ENDPOINT:?set DTF_ETCD_ENDPOINT to the etcd that all machines reach, HOST:PORT[,HOST:PORT]}"
warned=0

leave() {
    warned=1
    kill -TERM "$step"  # srun passes it on to the agents, not to their workers
}
trap leave USR1 TERM

srun --kill-on-bad-exit=0 --wait=0 \
    torchrun --nnodes=1:16 --nproc-per-node=1 --max-restarts=100 \
    --rdzv-backend=etcd --rdzv-endpoint="$ETCD" --rdzv-id="$RUN" \
    --rdzv-conf=grace_period=90,lease_ttl=5 train.py &
step=$!
code=0
wait "$step" || code=$?
if ((warned)); then
    code=0
    wait "$step" || code=$?  # the first wait ended with the signal
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
