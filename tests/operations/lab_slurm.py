"""A SLURM of two nodes for tests: on machines of their own where there may be some, else on this one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

PROGRAMS = ("srun", "slurmctld", "slurmd", "munged", "sinfo")
NODES = ("node1", "node2")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={controller}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
KillWait=5
ReturnToService=2
SlurmdTimeout=8
SlurmctldTimeout=30
TCPTimeout=2
MessageTimeout=10
BatchStartTimeout=10
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=DEFAULT CPUs=4 RealMemory=500
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


def why_not() -> str:
    """Why SLURM cannot be started here; empty where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        return "SLURM cannot be started here (Debian, as root: slurmctld slurmd slurm-client munge)"
    return ""


class Slurm:
    """A context manager, in which it runs.

    :param folder: for all that it writes.
    :param hosts: machines ``ctl``, ``node1`` and ``node2``; this one where there are none.
    """

    def __init__(self, folder: Path, hosts: object = None) -> None:
        self.folder = folder
        self.hosts = hosts
        port = free_ports(3)
        if hosts is None:
            where = (socket.gethostname(), "127.0.0.1")
            nodes = (
                f"NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{port + 1}-{port + 2}]"
            )
        else:
            where = ("ctl", hosts.addresses["ctl"])
            nodes = "\n".join(f"NodeName={name} NodeAddr={hosts.addresses[name]}" for name in NODES)
        self._configuration = CONFIGURATION.format(
            folder=folder, controller=where[0], address=where[1], port=port, nodes=nodes
        )
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        if hosts is None:
            self.environment["MASTER_ADDR"] = "127.0.0.1"

    def __enter__(self) -> Slurm:
        (self.folder / "state").mkdir(parents=True)  # and the folder itself, where it is not there
        self.folder.chmod(0o755)
        key = self.folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(self._configuration)
        munge = [
            "munged", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.sock",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/seed", "--num-threads=1",
        ]  # fmt: skip
        try:
            for command in (munge, ["slurmctld"]):
                self.says(*command, on="ctl")
            for node in NODES:
                self.start_daemon(node)
            self.wait_for_nodes()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.hosts is not None:
            return  # all ends with the machines
        for file in sorted(self.folder.glob("*.pid"), reverse=True):
            _end(int(file.read_text()))

    def says(self, *command: str, on: str = "ctl", cwd: Path | None = None) -> str:
        """What a command of SLURM prints."""
        words = list(command) if self.hosts is None else self.hosts.command(on, *command)
        if self.hosts is not None and cwd is not None:
            words[words.index(os.getcwd())] = str(cwd)
        for tries_left in (2, 1, 0):  # a machine that has much other work answers late, or not at all
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    words,
                    env=self.environment,
                    cwd=cwd,
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=False,
                )
                if done.returncode == 0 or done.stderr or not tries_left:
                    break
        else:
            raise AssertionError(f"{' '.join(command)}: no answer")
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def start_daemon(self, node: str) -> None:
        self.says("slurmd", "-N", node, on=node)

    def kill_daemon(self, node: str) -> None:
        """Kill the daemon of a node (SIGKILL); what it has started lives on."""
        os.kill(self.daemons()[node], signal.SIGKILL)

    def daemons(self) -> dict[str, int]:
        """Node -> the process of its daemon, where it is running."""
        found = {}
        for pid in _processes():
            command = _read(f"/proc/{pid}/cmdline").split("\0")
            if command[:2] == ["slurmd", "-N"] and f"{self.folder}/" in _read(f"/proc/{pid}/environ"):
                found[command[2]] = pid
        return found

    def wait_for_the_end_of(self, job: str, timeout: float = 150.0) -> None:
        """Wait until nothing of an earlier start of a job is left on a node: SLURM would drain the node."""
        end = time.monotonic() + timeout
        while any(_read(f"/proc/{pid}/cmdline").startswith(f"slurmstepd: [{job}.") for pid in _processes()):
            assert time.monotonic() < end, f"job {job} has not ended"
            time.sleep(0.5)

    def wait_for_nodes(self, timeout: float = 60.0) -> None:
        """Wait until both nodes have nothing to do."""
        end = time.monotonic() + timeout
        while (said := self.says("sinfo", "-h", "-p", "low", "-o", "%T %D")) != "idle 2":
            assert time.monotonic() < end, f"the nodes are not idle: {said}"
            self.resume_nodes()
            time.sleep(0.2)

    def resume_nodes(self) -> None:
        """As whoever operates it does: SLURM drains a node on which it starts a job once more while processes of
        the job's last start are left there, as after a link that was cut."""
        for line in self.says("sinfo", "-h", "-N", "-p", "low", "-o", "%N %T %E").splitlines():
            node, state, reason = line.split(maxsplit=2)
            if "drain" in state and reason == "Duplicate jobid":
                self.says("scontrol", "update", f"NodeName={node}", "State=RESUME")


def free_ports(number: int) -> int:
    """The first of so many ports that nobody uses."""
    for first in range(17_000 + os.getpid() % 1000 * 2, 20_000, number):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + number):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


def _end(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
        for _ in range(100):
            os.kill(process, 0)
            time.sleep(0.1)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
