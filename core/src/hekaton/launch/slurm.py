"""A batch script for SLURM: a process per GPU by ``srun``, and a job that was told to end is queued again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hekaton.errors import AGAIN

SCRIPT = """\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --time={time}
{partition}\
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# SLURM itself queues the job again when a node fails or the job is preempted. A run that is told to end (by
# "scancel --signal=TERM JOB", or ahead of --time by fault.save_before_seconds) saves and ends with {again}:
# it is queued again here, and resumes.
trap : TERM USR1 # for the processes of srun, which get them too

srun --kill-on-bad-exit=1 {command} &
step=$!
while :; do
    wait "$step"
    status=$?
    kill -0 "$step" 2>/dev/null || break # wait returns early where a signal came
done
if [ "$status" -eq {again} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run needs of SLURM.

    :param gpus: of each node, and processes.
    :param time: limit, as SLURM writes it: ``24:00:00``, ``2-00``.
    :param partition: the default one where empty.
    """

    name: str
    nodes: int
    gpus: int
    time: str
    partition: str


def script(job: Job, words: Sequence[str]) -> str:
    """The batch script.

    :param words: files and flags of the run.
    """
    return SCRIPT.format(
        name=job.name,
        nodes=job.nodes,
        gpus=job.gpus,
        time=job.time,
        partition=f"#SBATCH --partition={job.partition}\n" if job.partition else "",
        again=AGAIN,
        command=shlex.join(["hekaton", "train", *words]),
    )
