"""Starts of a run for the lab: a single process, torchrun with two ranks, and a job of SLURM on two nodes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from lab_hosts import Hosts
from lab_slurm import Slurm

from hekaton.testing import start_command

STEPS, INTERVAL = 48, 4
RUN = f"""
[job]
dump_folder = "DUMP_FOLDER"
[plugins]
load = ["endpoint.py"]
[model]
name = "llama3"
tokenizer = "byte"
overrides = {{ dim = 16, n_layers = 1, n_heads = 2, n_kv_heads = 1, hidden_dim = 32, vocab_size = 258 }}
[training]
seq_len = 16
global_batch_size = 4
local_batch_size = 1
steps = {STEPS}
mixed_precision_param = "float32"
[activation_checkpoint]
mode = "none"
[lr_scheduler]
warmup_steps = 0
[metrics]
log_freq = 1
loggers = ["jsonl", "endpoint"]
[checkpoint]
enable = true
interval = {INTERVAL}
keep_latest_k = 2
[comm]
init_timeout_seconds = 300
train_timeout_seconds = 100
[fault]
hang_seconds = HANG_SECONDS
hang = "abort"
stop_seconds = 60
"""
ENDPOINT = '''
"""A logger that sends metrics to a server at a Unix socket and waits for its answer."""

import json
import socket

from hekaton.contributions import Logger, Ref, hookimpl

HEKATON_API = ">=1,<2"


class Endpoint:
    def __init__(self):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect("endpoint.socket")

    def log(self, step, metrics):
        self._socket.sendall(json.dumps({"step": step, **metrics}).encode() + b"\\n")
        if self._socket.recv(2) != b"ok":
            raise ConnectionError("the endpoint is gone")

    def close(self):
        self._socket.close()


def build(section, folder):
    return Endpoint()


@hookimpl
def hekaton_loggers():
    return [Logger("endpoint", build=Ref("endpoint:build"), summary="a server")]
'''


def losses_of(dump_folder: Path) -> dict[int, float]:
    """Step -> loss, from the run's own ``metrics.jsonl``; the last line may be cut off."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (dump_folder / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                found[said["step"]] = said["loss"]
    return found


def weights_of(dump_folder: Path) -> dict[str, str]:
    """The checksums of the files of the last step: weights, moments, position in the data, random numbers."""
    manifest = json.loads((dump_folder / f"checkpoint/step-{STEPS}/manifest.json").read_text())
    return {name: file["xxh3_128"] for name, file in manifest["files"].items() if name.endswith(".distcp")}


def processes_in(folder: Path) -> list[int]:
    """All processes whose working directory is the folder, those that have ended left out."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.readlink(f"/proc/{name}/cwd") == str(folder):
                state = Path(f"/proc/{name}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
                if state not in "ZX":
                    found.append(int(name))
    return found


class Start:
    """One start of a run in a folder."""

    kind = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._from = 0

    def said(self) -> str:
        """What it has written since it started."""
        raise NotImplementedError

    def steps(self) -> int:
        """How many steps it has logged."""
        return len(re.findall(r"  step +\d+  loss ", self.said()))

    def ranks(self) -> list[int]:
        """The processes that train, by rank."""
        found = {}
        for pid in processes_in(self.folder):
            with contextlib.suppress(OSError):
                variables = (
                    Path(f"/proc/{pid}/environ").read_text(encoding="utf-8", errors="replace").split("\0")
                )
                said = dict(one.partition("=")[::2] for one in variables)
                program = os.readlink(f"/proc/{pid}/exe")
                command = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
                rank = said.get("RANK", said.get("SLURM_PROCID") if "SLURM_STEP_ID" in said else None)
                if rank is not None and "python" in program and "hekaton.launch" not in command:
                    found[int(rank)] = pid
        return [found[rank] for rank in sorted(found)]

    def tell(self, number: signal.Signals) -> None:
        """Send a signal as whoever operates the run does."""
        raise NotImplementedError

    def status(self) -> int | None:
        """Its exit status; ``None`` while it runs."""
        raise NotImplementedError

    def close(self) -> None:
        for pid in processes_in(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Single(Start):
    """A process that is forked from the server of tests."""

    kind = "one process"

    def __init__(self, folder: Path, *flags: str) -> None:
        super().__init__(folder)
        self._ending = contextlib.ExitStack()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = self._ending.enter_context(
            start_command("train", "run.toml", *flags, cwd=folder, environment=environment, warnings="")
        )

    def said(self) -> str:
        return self._process.stderr

    def ranks(self) -> list[int]:
        return [self._process.pid]

    def tell(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def status(self) -> int | None:
        status = self._process.poll()
        return status if status is None or status >= 0 else 128 - status

    def close(self) -> None:
        super().close()
        self._ending.close()


class Torchrun(Start):
    """``python -m hekaton.launch``: two ranks on this machine, or one on each of two others."""

    kind = "torchrun"

    def __init__(self, folder: Path, *options: str, hosts: Hosts | None = None) -> None:
        super().__init__(folder)
        self._log = folder / "log"
        self._from = self._log.stat().st_size if self._log.exists() else 0
        words = [sys.executable, "-m", "hekaton.launch", *options]
        run = ["-m", "hekaton.train", "--job.config_file", "run.toml"]
        if hosts is None:
            commands = [[*words, "--standalone", "--nproc_per_node=2", *run]]
        else:
            meet = [
                "--nnodes=2",
                "--nproc_per_node=1",
                "--rdzv_backend=c10d",
                "--rdzv_endpoint=node1:29400",
                "--rdzv_conf=read_timeout=300",
            ]
            commands = [
                [
                    word if word != os.getcwd() else str(folder)
                    for word in hosts.command(node, *words, *meet, *run)
                ]
                for node in ("node1", "node2")
            ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with self._log.open("ab") as log:
            self._agents = [
                subprocess.Popen(
                    command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )
                for command in commands
            ]  # fmt: skip

    def said(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    def tell(self, number: signal.Signals) -> None:
        for agent in self._agents[:1]:
            agent.send_signal(number)

    def kill_launcher(self) -> None:
        self._agents[0].kill()

    def status(self) -> int | None:
        ended = [agent.poll() for agent in self._agents]
        if None in ended:
            return None
        first = next((status for status in ended if status), 0)
        return first if first >= 0 else 128 - first

    def close(self) -> None:
        super().close()
        for agent in self._agents:
            with contextlib.suppress(ProcessLookupError):
                agent.kill()
            agent.wait(timeout=30)


QUEUED = {"PENDING", "REQUEUED"}
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
"""Of the states of a job in squeue's manual, those that it leaves no more."""


class Job(Start):
    """A job of SLURM on two nodes, by the script of ``hekaton launch slurm``; it may start several times."""

    kind = "SLURM"

    def __init__(self, folder: Path, slurm: Slurm, *, restarts: bool = False) -> None:
        """:param restarts: by torchrun on each node, which starts processes again that have failed."""
        super().__init__(folder)
        self.slurm = slurm
        self.job = self._says("sbatch", "--parsable", "restarts.sbatch" if restarts else "run.sbatch")
        self._log = folder / f"run-{self.job}.log"
        self._has_run = self._is_held = False

    def again(self) -> None:
        """Wait for the next start of a job that is queued again."""
        self.slurm.wait_for_the_end_of(self.job)
        self._from = self._log.stat().st_size
        self._says("scontrol", "release", self.job)
        self._has_run = self._is_held = False
        end = time.monotonic() + 60
        while self._state() == "PENDING":
            with contextlib.suppress(AssertionError):  # it may have started meanwhile
                self._says("scontrol", "update", f"JobId={self.job}", "StartTime=now")
            assert time.monotonic() < end, f"job {self.job} does not start again"
            self.slurm.resume_nodes()
            time.sleep(0.5)

    def said(self) -> str:
        if not self._log.exists():
            return ""
        with self._log.open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    def tell(self, number: signal.Signals) -> None:
        end = time.monotonic() + 60
        while self._state() in ("PENDING", "CONFIGURING") and time.monotonic() < end:
            time.sleep(0.2)  # SLURM does not take it yet, and scancel would try for a minute
        self._says("scancel", f"--signal={number.name.removeprefix('SIG')}", self.job)

    def status(self) -> int | None:
        """75 where the job is queued again, which passes through states such as SIGNALING."""
        state = self._state()
        if state == "RUNNING":
            self._has_run = True
        if not self._has_run or state not in QUEUED | ENDED:
            return None
        if state in QUEUED:
            self._hold()
            return 75
        said = self._says("scontrol", "show", "job", self.job)
        code, by = map(int, re.search(r"ExitCode=(\d+):(\d+)", said).groups())
        return code or (128 + by if by else 0)

    def _hold(self) -> None:
        """Keep it queued: SLURM starts it after two minutes, in which nodes may not have come back."""
        if not self._is_held:
            self._says("scontrol", "hold", self.job)
            self._is_held = True

    def close(self) -> None:
        with contextlib.suppress(AssertionError):
            self._says("scancel", self.job)
        super().close()

    def _state(self) -> str:
        return self._says("squeue", "-h", "-t", "all", "-j", self.job, "-o", "%T")

    def _says(self, *command: str) -> str:
        return self.slurm.says(*command, cwd=self.folder)
