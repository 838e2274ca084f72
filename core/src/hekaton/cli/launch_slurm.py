"""``hekaton launch slurm``: the batch script of a run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from hekaton.cli.arguments import take_number, take_texts
from hekaton.errors import ConfigError

USAGE = """\
usage: hekaton launch slurm FILE [FILE...] --nodes N --gpus N [flags]

Write a script for sbatch, after the check of 'hekaton config check' for that many processes. FILE and the
flags of a run are those of 'hekaton train'; paths are relative to the folder in which sbatch is called.

  --nodes N         nodes
  --gpus N          GPUs of each, and processes
  --time TIME       limit of a job, as SLURM writes it; 24:00:00
  --partition NAME  by default SLURM's own
  --name NAME       of the job; by default that of FILE
  --restarts N      times that all processes start again within the job after one has failed, by torchrun on
                    each node; 0, which does without torchrun

The job is queued again when a node fails, and when the run saved because it was told to end; it then resumes.
Set [checkpoint] enable, and [fault] save_before_seconds to save ahead of the limit."""
_TEXTS = {"time": "24:00:00", "partition": "", "name": ""}
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")
_NAME = re.compile(r"[\w.-]+")


def run(arguments: list[str]) -> int:
    """Run ``hekaton launch slurm ARGUMENTS``."""
    from hekaton.config import load
    from hekaton.config.flags import split_files
    from hekaton.launch.slurm import Job, script
    from hekaton.rules import check

    texts, rest = take_texts(arguments, _TEXTS)
    nodes, rest = take_number(rest, "--nodes", at_least=1)
    gpus, rest = take_number(rest, "--gpus", at_least=1)
    restarts, rest = take_number(rest, "--restarts", at_least=0)
    files, flags = split_files(rest)
    if nodes is None or gpus is None or not files:
        missing = [
            name for name, value in (("--nodes", nodes), ("--gpus", gpus), ("a FILE", files)) if not value
        ]
        raise ConfigError(f"hekaton launch slurm needs {', '.join(missing)}", hint=USAGE.splitlines()[0])
    if not _TIME.fullmatch(texts["time"]):
        raise ConfigError(f"--time '{texts['time']}' is no time of SLURM", hint="24:00:00, 2-00 or minutes")
    for option in ("partition", "name"):
        if texts[option] and not _NAME.fullmatch(texts[option]):
            raise ConfigError(
                f"--{option} '{texts[option]}' has other characters than letters, digits, . _ -"
            )
    loaded = load(files, flags)
    check(loaded, world_size=nodes * gpus, device_type="cuda", here=False)
    config = loaded.config
    if not config.checkpoint.enable:
        print("notice: checkpoint.enable is not set: a job that is queued again starts anew", file=sys.stderr)
    elif not config.fault.save_before_seconds:
        print(
            "notice: fault.save_before_seconds = 0: at the end of --time a run saves in SLURM's KillWait "
            "(30 s by default), or is ended and not queued again",
            file=sys.stderr,
        )
    name = texts["name"] or re.sub(r"[^\w.-]", "-", Path(files[0]).stem)
    job = Job(
        name=name,
        nodes=nodes,
        gpus=gpus,
        time=texts["time"],
        partition=texts["partition"],
        restarts=restarts or 0,
    )
    print(script(job, [*files, *flags]), end="")
    return 0
