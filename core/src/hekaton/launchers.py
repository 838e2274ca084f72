"""Launchers other than torchrun: what ``srun`` and those of MPI say becomes the variables of torchrun."""

from __future__ import annotations

import os
import re
import socket
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from hekaton.environment import is_number, number
from hekaton.errors import ConfigError
from hekaton.processor import cores


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """The variables of one launcher.

    :param name: for messages.
    :param local_size: how many processes this machine has, where it says so.
    :param job: variables that make one job differ from others on the same machines.
    """

    name: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    job: tuple[str, ...] = ()


# A launcher of MPI may itself use srun to reach the machines: its own variables come first.
LAUNCHERS = (
    Launcher(
        name="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
        job=("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    Launcher(
        name="MPICH or Intel MPI",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
    ),
    Launcher(
        name="srun",
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        local_size="",
        job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ),
)
_OTHER = ("PMIX_RANK", "PALS_RANKID", "FLUX_TASK_RANK", "MV2_COMM_WORLD_RANK")
_NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
"""Errors that another attempt does not mend, as it may one of a name server that does not answer."""
PORTS = range(20_000, 30_000)
"""Below the ports that Linux gives to connections."""


def adopt_launcher() -> str:
    """Set RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, WORLD_SIZE, MASTER_ADDR and MASTER_PORT from what another
    launcher than torchrun says, where it started several processes and they are not set.

    :returns: the launcher's name, empty where there is none.
    :raises ConfigError: when processes were started together and cannot be made one run.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return ""
    launcher = next((one for one in LAUNCHERS if one.rank in os.environ and _is_ours(one)), None)
    if launcher is None:
        unknown = next((name for name in _OTHER if name in os.environ), None)
        if unknown is not None:
            raise ConfigError(
                f"a launcher started this process as one of several ({unknown} = {os.environ[unknown]}), and "
                "does not say how many there are",
                hint=_CURE,
            )
        return ""
    size = number(launcher.size, default=1, at_least=1)
    if size == 1:
        return ""
    if launcher.local_rank not in os.environ:
        raise ConfigError(
            f"{launcher.name} says {launcher.rank} = {os.environ[launcher.rank]} of {size}, but not "
            f"{launcher.local_rank}: which of its machine's devices this process takes is not known",
            hint=_CURE,
        )
    local_size = _local_size(launcher)
    os.environ |= {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR") or _address(launcher, size, local_size),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_port(launcher)),
        "RANK": str(number(launcher.rank, default=0)),
        "LOCAL_RANK": str(number(launcher.local_rank, default=0)),
        "WORLD_SIZE": str(size),
    }
    if local_size is not None:
        os.environ["LOCAL_WORLD_SIZE"] = str(local_size)
    return launcher.name


def started_with_others() -> bool:
    """Whether srun or a launcher of MPI started this process as one of several."""
    sizes = [os.environ.get(one.size, "") for one in LAUNCHERS if one.rank in os.environ and _is_ours(one)]
    return any(is_number(size) and int(size) > 1 for size in sizes)


def share_cores() -> int:
    """Set ``OMP_NUM_THREADS`` to this process's share of the machine's cores, where nobody has set it and the
    launcher has not bound the process to cores of its own: torch would use all of them in every process.

    Called before torch is imported.

    :returns: the threads; 0 where nothing is set.
    """
    processes = number("LOCAL_WORLD_SIZE", default=1, at_least=1)
    given = number("SLURM_CPUS_ON_NODE", default=os.cpu_count() or 1, at_least=1)
    if processes < 2 or "OMP_NUM_THREADS" in os.environ or cores() < min(given, os.cpu_count() or 1):
        return 0
    threads = max(1, cores() // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if os.environ.get("LOCAL_RANK") == "0":
        print(f"OMP_NUM_THREADS = {threads}: {cores()} cores, {processes} processes", file=sys.stderr)
    return threads


_CURE = """\
start torchrun on each machine, or set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
for processes that have nothing to do with each other: env RANK=0 WORLD_SIZE=1 hekaton train ..."""


def _is_ours(launcher: Launcher) -> bool:
    """A batch script has variables of SLURM, too, without being a task of ``srun``."""
    return launcher.name != "srun" or ("SLURM_STEP_ID" in os.environ and launcher.size in os.environ)


def _local_size(launcher: Launcher) -> int | None:
    if launcher.local_size:
        there = launcher.local_size in os.environ
        return number(launcher.local_size, default=1, at_least=1) if there else None
    node = number("SLURM_NODEID", default=0)
    tasks = expanded_counts(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return tasks[node] if node < len(tasks) else None


def _address(launcher: Launcher, size: int, local_size: int | None) -> str:
    """The machine of rank 0."""
    if local_size == size:
        return "127.0.0.1"
    nodes = os.environ.get("SLURM_STEP_NODELIST") if launcher.name == "srun" else None
    nodes = nodes or os.environ.get("SLURM_JOB_NODELIST")
    if nodes:
        return _with_address(first_host(nodes), launcher)
    raise ConfigError(
        f"{launcher.name} started {size} processes on several machines, and does not say which has rank 0",
        hint="set MASTER_ADDR to that machine, for all processes: mpirun -x MASTER_ADDR=$(hostname) ... "
        "(Open MPI), mpiexec -genv MASTER_ADDR $(hostname) ... (MPICH, Intel MPI), with rank 0 where it runs",
    )


def _with_address(node: str, launcher: Launcher) -> str:
    """:raises ConfigError: for a node that SLURM reaches by an address of its own, and nobody else by its
    name: processes would look for it until they time out."""
    try:
        socket.getaddrinfo(node, None)
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            raise ConfigError(
                f"{launcher.name} says that rank 0 is on the node '{node}', and this machine knows no "
                "address of that name",
                hint="set MASTER_ADDR to an address of that node, for all processes: "
                f"scontrol show node {node} says its NodeAddr",
            ) from error
    return node


def _port(launcher: Launcher) -> int:
    """The same for all processes of a job, and rarely that of another."""
    job = [os.environ.get(name, "") for name in launcher.job]
    several_machines = any(job) or "SLURM_JOB_ID" in os.environ
    # Processes on one machine have one parent, the launcher's own on it.
    text = "/".join([*job, os.environ.get("SLURM_JOB_ID", "")]) if several_machines else str(os.getppid())
    return PORTS[zlib.crc32(text.encode()) % len(PORTS)]


def first_host(nodes: str) -> str:
    """The first of SLURM's list of hosts: ``node07`` of ``node[07-09,12],other``.

    :raises ConfigError: for what is no such list.
    """
    found = re.match(r"([^\s,\[\]]+)(?:\[(\d+)[-,\d]*\]([^\s,\[\]]*))?(?:,|$)", nodes)
    if found is None:
        raise ConfigError(f"the environment's list of nodes '{nodes}' has no first host", hint=_CURE)
    prefix, number_of_first, suffix = found.groups()
    return prefix + (number_of_first or "") + (suffix or "")


def expanded_counts(counts: str) -> list[int]:
    """SLURM's number of tasks on each node: ``2(x3),1`` is 2, 2, 2, 1."""
    tasks: list[int] = []
    for count, times in re.findall(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", counts):
        tasks += [int(count)] * int(times or 1)
    return tasks


def idle_devices(devices: int, environment: Mapping[str, str]) -> str:
    """One line where this machine has more visible devices than processes of the run, else nothing."""
    said = environment.get("LOCAL_WORLD_SIZE", "")
    processes = int(said) if is_number(said) else 1
    if devices <= processes:
        return ""
    some = "1 process of this run sees" if processes == 1 else f"{processes} processes of this run see"
    return (
        f"{some} {devices} GPUs on this machine, and {devices - processes} will be idle: NGPU={devices} "
        f"./run_train.sh, or torchrun --nproc_per_node {devices}, uses all; CUDA_VISIBLE_DEVICES hides some"
    )
