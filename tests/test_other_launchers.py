"""Processes that other launchers than torchrun start are one run: Open MPI's ``mpirun`` where it is installed, and ``srun``
of a SLURM of two nodes that is made on this machine for the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hekaton.testing import run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PROGRAMS = ("srun", "slurmctld", "slurmd", "munged", "sinfo")
needs_mpirun = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="there is no mpirun here (Debian: openmpi-bin)"
)
needs_slurm = pytest.mark.skipif(
    os.geteuid() != 0 or any(shutil.which(name) is None for name in PROGRAMS),
    reason="SLURM cannot be started here (Debian, as root: slurmctld slurmd slurm-client munge)",
)
RUN = """
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "byte"
overrides = {n_layers = 1, dim = 32, n_heads = 2, n_kv_heads = 2, hidden_dim = 64}
[training]
seq_len = 32
local_batch_size = 1
steps = 1
mixed_precision_param = "float32"
"""
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
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
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 RealMemory=500
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def mpirun(folder: Path, *of_second: str) -> subprocess.CompletedProcess[str]:
    (folder / "run.toml").write_text(RUN)
    command = ["-n", "1", sys.executable, "-m", "hekaton", "train", "run.toml"]
    launcher = ["mpirun", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]
    ended = subprocess.run(
        [*launcher, *command, ":", *command, *of_second],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
        check=False,
    )
    assert "Traceback" not in ended.stdout
    return ended


@needs_mpirun
def test_the_processes_of_mpirun_are_one_run(tmp_path: Path) -> None:
    ended = mpirun(tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert "cpu on 2 process(es)" in ended.stdout
    assert ended.stdout.count("  step      1  ") == 1


@needs_mpirun
def test_a_difference_ends_mpirun_with_the_status_of_the_run(tmp_path: Path) -> None:
    ended = mpirun(tmp_path, "--optimizer.lr", "0.5")
    assert ended.returncode == 2, ended.stdout
    assert "\n  optimizer.lr: 0.0008 on rank 0 (" in ended.stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run, in which ``srun`` finds a SLURM of two nodes of this machine."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    folder.chmod(0o755)
    port = free_ports(3)
    configuration = CONFIGURATION.format(
        folder=folder, host=socket.gethostname(), port=port, first=port + 1, last=port + 2
    )
    (folder / "slurm.conf").write_text(configuration)
    (folder / "run.toml").write_text(RUN)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = [
        "munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock",
        f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed",
    ]  # fmt: skip
    try:
        for command in (munge, ["slurmctld"], ["slurmd", "-N", "node1"], ["slurmd", "-N", "node2"]):
            subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True)
        wait_for_nodes(environment)
        yield folder
    finally:
        for file in sorted(folder.glob("*.pid"), reverse=True):
            end(int(file.read_text()))


def free_ports(number: int) -> int:
    """The first of so many ports that nobody uses."""
    for first in range(17_000 + os.getpid() % 1000 * 2, 20_000, number):
        sockets = [socket.socket() for _ in range(number)]
        try:
            for port, one in enumerate(sockets, first):
                one.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")


def wait_for_nodes(environment: dict[str, str]) -> None:
    said = ""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        asked = subprocess.run(
            ["sinfo", "-h", "-o", "%T %D"], env=environment, capture_output=True, text=True, check=False
        )
        said = asked.stdout.strip() or asked.stderr
        if said == "idle 2":
            return
        time.sleep(0.2)
    raise AssertionError(f"the nodes are not idle: {said}")


def end(process: int) -> None:
    try:
        os.kill(process, 15)
        for _ in range(100):
            os.kill(process, 0)
            time.sleep(0.1)
    except ProcessLookupError:
        return


def srun(folder: Path, *of_second: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``hekaton train`` as a task on each node."""
    command = f"{sys.executable} -m hekaton train run.toml"
    (folder / "tasks").write_text(f"0 {command}\n1 {' '.join([command, *of_second])}\n")
    ended = subprocess.run(
        ["srun", "--nodes", "2", "--ntasks-per-node", "1", "--multi-prog", "tasks"],
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            **{"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert "Traceback" not in ended.stdout, ended.stdout
    return ended


@needs_slurm
def test_the_tasks_of_srun_are_one_run(slurm: Path) -> None:
    ended = srun(slurm, MASTER_ADDR="127.0.0.1")
    assert ended.returncode == 0, ended.stdout
    assert "cpu on 2 process(es)" in ended.stdout
    assert ended.stdout.count("  step      1  ") == 1


@needs_slurm
def test_a_difference_ends_srun_with_the_status_of_the_run(slurm: Path) -> None:
    ended = srun(slurm, "--optimizer.lr", "0.5", MASTER_ADDR="127.0.0.1")
    assert ended.returncode == 2, ended.stdout
    assert "\n  optimizer.lr: 0.0008 on rank 0 (" in ended.stdout


@needs_slurm
def test_a_node_that_no_other_machine_can_find_is_refused_at_once(slurm: Path) -> None:
    """SLURM reaches the nodes by ``NodeAddr``; their names are its own."""
    ended = srun(slurm)
    assert ended.returncode == 2, ended.stdout
    assert "srun says that rank 0 is on the node 'node1', and this machine knows no address" in ended.stdout


@needs_slurm
def test_a_job_that_is_told_to_end_is_queued_again_and_resumes(slurm: Path) -> None:
    written = run_command(
        "launch", "slurm", "run.toml", "--nodes", "2", "--gpus", "1", "--training.steps", "100000",
        "--checkpoint.enable", "--checkpoint.interval", "100000", "--job.dump_folder", "job", "--name", "job",
        cwd=slurm,
    )  # fmt: skip
    assert written.returncode == 0, written.stderr
    script = slurm / "job.sbatch"
    script.write_text(written.stdout.replace("#SBATCH --gpus-per-node=1\n", ""))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "SLURM_CONF": str(slurm / "slurm.conf"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip

    def slurm_says(*command: str) -> str:
        return subprocess.run(
            command, cwd=slurm, env=environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    job = slurm_says("sbatch", "--parsable", str(script))
    log = slurm / f"job-{job}.log"
    try:
        wait_for_text(log, "  step     10  ")
        slurm_says("scancel", "--signal=TERM", job)
        wait_for_text(log, "stopping after step ")
        for _ in range(100):
            if slurm_says("squeue", "-h", "-j", job, "-o", "%T") == "PENDING":
                break
            time.sleep(0.2)
        slurm_says(
            "scontrol", "update", f"JobId={job}", "StartTime=now"
        )  # it waits for two minutes otherwise
        wait_for_text(log, "resumed at step ")
    finally:
        slurm_says("scancel", job)
    said = log.read_text()
    assert said.count("resumed at step ") == 1
    assert "Traceback" not in said


def wait_for_text(log: Path, text: str) -> None:
    limit = time.monotonic() + 90
    while time.monotonic() < limit:
        if log.exists() and text in log.read_text():
            return
        time.sleep(0.2)
    raise AssertionError(f"{text!r} is not in:\n{log.read_text() if log.exists() else 'no log'}")
