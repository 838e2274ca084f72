"""Runs that are disturbed by random faults, started again, and compared with one that nothing disturbed."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import lab_hosts
import lab_slurm
from lab_faults import FAULTS, PREEMPTION, RESTARTS, Disk, Endpoint, Fault
from lab_starts import (
    ENDPOINT,
    INTERVAL,
    RUN,
    Job,
    Single,
    Start,
    Torchrun,
    losses_of,
    processes_in,
    weights_of,
)

from hekaton.accounting import Account, read_account
from hekaton.testing import run_command

START = 120.0
"""Seconds that a start has to its first steps, and a whole run to its end, where hangs are found after 6 s."""
RESUMED = "resumed at step "
STARVED = "no progress:"
BUSY = "none: the machine had other work for longer than the hang limit"
NO_FAULT = "none"
LEFT_OUT = re.compile(r"logger 'endpoint' .*left out")


@dataclass(frozen=True)
class Outcome:
    """:param status: that the start ended with, ``None`` where it went on.
    :param seconds: from the fault to the end of the start.
    :param lost: steps that were done and are done again.
    :param wrong: what was not as it has to be, of the fault or of the run that it was one of.
    """

    kind: str
    fault: str
    status: int | None
    seconds: float
    lost: int
    wrong: str = ""


class Wrong(AssertionError):
    """Something was not as it has to be.

    :param outcomes: of the faults until then, that of the last one included.
    """

    def __init__(self, said: str, outcomes: Sequence[Outcome]) -> None:
        super().__init__(said)
        self.outcomes = outcomes


@dataclass
class Lab:
    """:param folder: for all that is written.
    :param kinds: how runs are started.
    :param hang: ``fault.hang_seconds`` of the runs; a slow machine needs more, and all limits grow with it.
    """

    folder: Path
    kinds: Sequence[str]
    hang: float = 6.0
    hosts: lab_hosts.Hosts | None = None
    slurm: lab_slurm.Slurm | None = None
    accounts: list[tuple[str, Account]] = field(default_factory=list)

    def __enter__(self) -> Lab:
        self._ending = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self.disk = Disk(self.folder / "disk")
            opened.callback(self.disk.close)
            self.endpoint = Endpoint()
            opened.callback(self.endpoint.close)
            if set(self.kinds) & {Torchrun.kind, Job.kind} and not lab_hosts.why_not():
                self.hosts = lab_hosts.Hosts(self.folder / "hosts", ["ctl", "node1", "node2"])
                opened.callback(self.hosts.close)
                self.hosts.start()
            if Job.kind in self.kinds:
                self.slurm = opened.enter_context(lab_slurm.Slurm(self.folder / "slurm", self.hosts))
            self._ending = opened.pop_all()
        self._runs = 0
        self._undisturbed: dict[int, tuple[object, object]] = {}
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.close()

    def faults(self, kind: str) -> list[Fault]:
        """Those that can be had for a way to start."""
        return [one for one in FAULTS if kind in one.kinds and (self.hosts or not one.on_hosts)]

    def undisturbed(self, processes: int) -> tuple[object, object]:
        """The losses of all steps, and the checksums of the last checkpoint."""
        if processes not in self._undisturbed:
            folder = self._new_run()
            self.endpoint.listen(folder)
            done = run_command(
                "train",
                "run.toml",
                "--fault.hang_seconds",
                "0",
                processes=processes,
                cwd=folder,
                warnings="",
                timeout=START * self.hang / 6,
            )
            assert done.returncode == 0, done.stderr
            place = self._dump_folder(folder)
            self._undisturbed[processes] = (losses_of(place), weights_of(place))
        return self._undisturbed[processes]

    def disturb(
        self, kind: str, faults: Sequence[Fault], random: Random, *, early: bool = True
    ) -> list[Outcome]:
        """A run, to its end; each fault comes at a random moment of a start of it.

        :param early: a fifth of them before the first step, often.
        :returns: fewer than there are faults, where the run was done before.
        :raises Wrong: with what was not as it has to be, and what the run has written.
        """
        processes = 1 if kind == Single.kind else 2
        expected = self.undisturbed(processes)
        folder = self._new_run()
        outcomes: list[Outcome] = []
        start: Start | None = None
        doing: Fault | None = None
        done, saved, compared = 0, False, False
        to_come, queued = list(faults), False
        try:
            while True:
                fault = to_come[0] if to_come else None
                special = fault is not None and (fault.options or (fault.on_hosts and kind != Job.kind))
                if start is not None and special:
                    start = self._ended(start)  # it was not started in a way that this needs
                if start is None:
                    start = self._start(kind, folder, fault)
                elif queued:
                    self.endpoint.listen(folder)
                    start.again()
                queued = False
                self._wait_for_moment(start, fault, random, early=early)
                if outcomes and outcomes[-1].status is not None:
                    lost = self._lost(start, done, saved=saved)
                    outcomes[-1] = replace(outcomes[-1], lost=lost or 0)
                if start.status() == 0:
                    break
                if start.status() is not None:
                    assert STARVED in start.said(), f"ended with {start.status()} without any fault"
                    outcomes.append(Outcome(kind, BUSY, start.status(), 0.0, 0))
                elif fault is not None:
                    doing = fault
                    outcome = self._do(fault, start, kind, random)
                    doing = None
                    if outcome is None:
                        continue
                    to_come.pop(0)
                    outcomes.append(outcome)
                if outcomes and outcomes[-1].status is not None:
                    done = max(losses_of(self._dump_folder(folder)), default=0)
                    saved = (
                        fault is not None
                        and fault.saves
                        and start.steps() > 0  # what starts before it have lost is done again, else
                        and (outcomes[-1].status == 75 or "launcher" in fault.name)
                    )
                    if outcomes[-1].status == 0:
                        break
                    queued = isinstance(start, Job) and outcomes[-1].status == 75
                    if not queued:
                        start.close()
                        start = None
            place, compared = self._dump_folder(folder), True
            assert losses_of(place) == expected[0], "losses differ from those of the undisturbed run"
            assert weights_of(place) == expected[1], (
                "the last checkpoint differs from that of the undisturbed run"
            )
            self.accounts.append((kind, read_account(place)))
        except (
            Exception
        ) as error:  # those of programs that do not answer and of files that are not there, too
            said = start.said() if start else ""
            if doing is not None or not outcomes:
                outcomes.append(Outcome(kind, doing.name if doing else NO_FAULT, None, 0.0, 0))
            first = 0 if compared else len(outcomes) - 1
            outcomes[first:] = [replace(one, wrong=repr(error)) for one in outcomes[first:]]
            names = ", ".join(one.fault for one in outcomes)
            raise Wrong(f"{kind}, {names}: {error!r}\n{said[-6000:]}", outcomes) from error
        finally:
            self._repair()
            if start is not None:
                start.close()
        shutil.rmtree(self._dump_folder(folder))
        return outcomes

    def _do(self, fault: Fault, start: Start, kind: str, random: Random) -> Outcome | None:
        """What came of it; ``None`` where there was nothing to disturb."""
        steps, resumed = start.steps(), start.said().count(RESUMED)
        done = max(losses_of(self._dump_folder(start.folder)), default=0)
        if fault.do(self, start, random) is False:
            return None
        began = time.monotonic()
        if fault.ends is False:
            status = self._wait(start, lambda: LEFT_OUT.search(start.said()) is not None, START)
            new = start.status() == 2 and not done  # a new run whose logger cannot be opened is not started
            done_without = start.status() == 0 or STARVED in start.said()
            assert len(LEFT_OUT.findall(start.said())) == 1 or done_without or new, "the logger stays"
        elif fault.name == RESTARTS and done > INTERVAL:
            status = self._wait(start, lambda: start.said().count(RESUMED) > resumed, fault.limit)
        elif fault.ends is None:
            status = self._wait(start, lambda: start.steps() > steps + 2, fault.limit)
        else:
            status = self._wait(start, lambda: False, fault.limit)
        seconds = time.monotonic() - began
        self._repair()
        if status is not None:
            self._wait_for_nobody(start.folder)
            if self.slurm is not None:
                self.slurm.wait_for_nodes(300.0 if fault.on_hosts else 60.0)  # its messages are sent again
        if fault.saves and status is not None and (steps or fault.name == PREEMPTION):
            ended_well = status in (0, 75) or "launcher" in fault.name or STARVED in start.said()
            assert ended_well, f"{fault.name}: status {status}"
        lost = self._lost(start, done, saved=False) if fault.name == RESTARTS and status is None else 0
        return Outcome(kind, fault.name, status, seconds, lost or 0)

    def _repair(self) -> None:
        """The disk has room, the machines their cables, and nodes their daemons."""
        self.disk.free()
        if self.hosts is not None:
            for node in lab_slurm.NODES:
                self.hosts.mend(node)
        if self.slurm is not None:
            for node in set(lab_slurm.NODES) - set(self.slurm.daemons()):
                self.slurm.start_daemon(node)

    def _lost(self, start: Start, done: int, *, saved: bool) -> int | None:
        """How many steps this start does again; ``None`` where it is not known yet."""
        resumed = re.findall(rf"{RESUMED}(\d+)", start.said())
        if not resumed and not start.steps():
            return None
        lost = max(0, done - (int(resumed[-1]) if resumed else 0))
        assert lost <= (0 if saved else INTERVAL), f"{lost} steps are lost of {done}"
        return lost

    def _start(self, kind: str, folder: Path, fault: Fault | None) -> Start:
        self.endpoint.listen(folder)
        if kind == Single.kind:
            return Single(folder)
        if kind == Job.kind:
            assert self.slurm is not None
            return Job(folder, self.slurm, restarts=fault is not None and bool(fault.options))
        if fault is None:
            return Torchrun(folder)
        return Torchrun(folder, *fault.options, hosts=self.hosts if fault.on_hosts else None)

    def _new_run(self) -> Path:
        self._runs += 1
        folder = self.folder / f"run-{self._runs}"
        folder.mkdir()
        (folder / "run.toml").write_text(self._run_toml(folder))
        (folder / "endpoint.py").write_text(ENDPOINT)
        if self.slurm is not None:
            words = ["launch", "slurm", "run.toml", "--nodes", "2", "--gpus", "1", "--name", "run"]
            for name, restarts in (("run", "0"), ("restarts", "1")):
                written = run_command(*words, "--restarts", restarts, cwd=folder, warnings="")
                assert written.returncode == 0, written.stderr
                script = written.stdout.replace("#SBATCH --gpus-per-node=1\n", "")
                (folder / f"{name}.sbatch").write_text(script)
        return folder

    def _run_toml(self, folder: Path) -> str:
        replaced = {"DUMP_FOLDER": str(self._dump_folder(folder)), "HANG_SECONDS": f"{self.hang:g}"}
        return re.sub("|".join(replaced), lambda found: replaced[found[0]], RUN)

    def _dump_folder(self, folder: Path) -> Path:
        return self.disk.folder / folder.name

    def _wait(self, start: Start, holds: Callable[[], bool], limit: float) -> int | None:
        """The status that it saw: a job that is queued again may start meanwhile, and has none then."""
        limit *= self.hang / 6.0
        end = time.monotonic() + limit
        while (status := start.status()) is None and not holds():
            assert time.monotonic() < end, f"not there after {limit:g} s"
            time.sleep(0.02 if isinstance(start, Single) else 0.1)
        return status

    def _wait_for_moment(self, start: Start, fault: Fault | None, random: Random, *, early: bool) -> None:
        if fault is None:
            self._wait(start, lambda: False, START)
        elif early and not fault.on_hosts and random.random() < 0.2:
            time.sleep(random.uniform(0.0, 2.0 if isinstance(start, Single) else 5.0))
        else:
            least = start.steps() + random.randint(1, 5)
            self._wait(start, lambda: start.steps() >= least, START)
            time.sleep(random.uniform(0.0, 0.15))

    def _ended(self, start: Start) -> Start | None:
        """``None``, after the end of a start."""
        start.tell(signal.SIGTERM)
        self._wait(start, lambda: False, START)
        start.close()
        return None

    def _wait_for_nobody(self, folder: Path) -> None:
        end = time.monotonic() + 40 * self.hang / 6.0
        while left := processes_in(folder):
            assert time.monotonic() < end, (
                "processes are left: "
                + subprocess.run(
                    ["ps", "-o", "pid,stat,args", *map(str, left)],
                    capture_output=True,
                    text=True,
                    check=False,
                ).stdout
            )
            time.sleep(0.1)
