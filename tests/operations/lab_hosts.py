"""Machines for tests: network, process, name and mount namespaces of this one, with a cable each to a switch.

A machine is a process in namespaces of its own; whatever is started on it ends with it. Nothing outside of a
folder and the namespaces is changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

NETWORK = "10.77.0"
INIT = """
hostname {name}; mount --make-rprivate /; mount -t proc proc /proc; mount --bind {folder}/hosts /etc/hosts
ip link set lo up; trap 'exit 0' TERM; touch {folder}/{name}.up
while :; do sleep 3600 & wait $!; done
"""


def why_not() -> str:
    """Why there are no such machines here; empty where there are."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: iproute2 util-linux)"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "ip", "link", "add", "name", "b", "type", "bridge"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return tried.stderr.strip() and f"namespaces cannot be made here: {tried.stderr.strip()}"


class Hosts:
    """A switch in the first machine, and a machine at each of its ports."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=1)}
        self._names = list(names)
        self._holders: list[subprocess.Popen[bytes]] = []
        self._pids: dict[str, int] = {}

    def start(self) -> None:
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in self.addresses.items())]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        for name in self._names:
            self._boot(name)
        switch, *others = self._names
        self.run(switch, "ip", "link", "add", "br0", "type", "bridge")
        self.run(switch, "ip", "addr", "add", f"{self.addresses[switch]}/24", "dev", "br0")
        self.run(switch, "ip", "link", "set", "br0", "up")
        for name in others:
            self.run(
                switch, "ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0",
                "netns", str(self._pids[name]), in_namespaces=("--net",),
            )  # fmt: skip
            self.run(switch, "ip", "link", "set", f"to-{name}", "master", "br0", "up")
            self.run(name, "ip", "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
            self.run(name, "ip", "link", "set", "eth0", "up")

    def command(self, name: str, *words: str, in_namespaces: Sequence[str] = ("--all",)) -> list[str]:
        """The words that run something on a machine, in the folder that they are run in here."""
        enter = ["nsenter", f"--target={self._pids[name]}", *in_namespaces]
        return [*enter, "bash", "-c", 'cd "$0" && exec "$@"', os.getcwd(), *words]

    def run(self, name: str, *words: str, in_namespaces: Sequence[str] = ("--all",)) -> None:
        command = self.command(name, *words, in_namespaces=in_namespaces)
        subprocess.run(command, check=True, capture_output=True, timeout=30)

    def cut(self, name: str) -> None:
        """Pull the cable of a machine: what is sent is lost, and nobody is told."""
        self.run(self._names[0], "ip", "link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        """Put the cable back."""
        self.run(self._names[0], "ip", "link", "set", f"to-{name}", "up")

    def close(self) -> None:
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for holder in self._holders:
            holder.wait(timeout=30)

    def _boot(self, name: str) -> None:
        up = self.folder / f"{name}.up"
        up.unlink(missing_ok=True)
        holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child",
             "bash", "-c", INIT.format(name=name, folder=self.folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._holders.append(holder)
        end = time.monotonic() + 20
        while not up.exists():
            assert time.monotonic() < end, f"machine {name} does not start"
            time.sleep(0.01)
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text(encoding="ascii")
        self._pids[name] = int(children.split()[0])
