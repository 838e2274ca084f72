"""A batch script for SLURM: a process per GPU by ``srun``, or torchrun on each node, which starts processes
again that have failed; a job that was told to end is queued again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hekaton.errors import AGAIN

SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={time}
{partition}\
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# SLURM itself queues the job again when a node fails or the job is preempted. A run that is told to end (by
# "scancel --signal=TERM JOB", or ahead of --time by fault.save_before_seconds) saves and ends with {again}:
# it is queued again here, and resumes. SLURM waits two minutes before, unless told otherwise by
# "scontrol update JobId=JOB StartTime=now".
end=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e) # SLURM before 23.02 does not tell the run
export SLURM_JOB_END_TIME=${{SLURM_JOB_END_TIME:-${{end:+$(date --date="$end" +%s)}}}}
trap : TERM USR1 # for the processes of srun, which get them too

{before}\
srun --kill-on-bad-exit=1 {command} &
step=$!
while :; do
    wait "$step"
    kill -0 "$step" 2>/dev/null || break # wait returns early where a signal came
done
wait "$step"
status=$?
# Preempted while it starts, a run ends with the status of the signal, and SLURM then takes the job for ended.
job=$(scontrol --oneliner show job "$SLURM_JOB_ID")
times='StartTime=([^ ]+) .*PreemptTime=([0-9][^ ]+)'
[[ $status -ne 0 && $job =~ $times && ${{BASH_REMATCH[2]}} > ${{BASH_REMATCH[1]}} ]] && status={again}
# So does one that srun did not start, or ended, for a node that does not answer: SLURM is slow to see that.
nodes=$(sinfo --noheader --nodes="$SLURM_JOB_NODELIST" --format=%T)
[[ $status -ne 0 && $nodes == *[*]* ]] && status={again}
if [ "$status" -eq {again} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


_BEFORE = """\
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
id=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
port=$((20000 + SLURM_JOB_ID % 10000))
"""
_TORCHRUN = (
    'python3 -m hekaton.launch --nnodes="$SLURM_NNODES" --nproc_per_node={gpus} --max-restarts={restarts} '
    '--rdzv_backend=c10d --rdzv_id="$id" --rdzv_endpoint="$head:$port" -m'
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run needs of SLURM.

    :param gpus: of each node, and processes.
    :param time: limit, as SLURM writes it: ``24:00:00``, ``2-00``.
    :param partition: the default one where empty.
    :param restarts: how often torchrun starts the processes again after a failure; 0 does without torchrun.
    """

    name: str
    nodes: int
    gpus: int
    time: str
    partition: str
    restarts: int = 0


def script(job: Job, words: Sequence[str]) -> str:
    """The batch script.

    :param words: files and flags of the run.
    """
    command = shlex.join(["hekaton", "train", *words])
    if job.restarts:
        command = f"{_TORCHRUN.format(gpus=job.gpus, restarts=job.restarts)} {command}"
    return SCRIPT.format(
        name=job.name,
        nodes=job.nodes,
        gpus=job.gpus,
        tasks=1 if job.restarts else job.gpus,
        before=_BEFORE if job.restarts else "",
        time=job.time,
        partition=f"#SBATCH --partition={job.partition}\n" if job.partition else "",
        again=AGAIN,
        command=command,
    )
