"""Run by test_agent.py in a process of its own: what hekaton.launch makes of the ends of its processes."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

from hekaton.launch import agent
from hekaton.launch.torchrun import main

WORKER = """
import os, pathlib, signal, sys, time
number = len(list(pathlib.Path().glob("start-*-" + os.environ["RANK"])))
told = []
for name in ("SIGTERM", "SIGUSR1") if int(sys.argv[1]) > -2 else ():
    signal.signal(getattr(signal, name), lambda number, frame: told.append(number))
pathlib.Path(f"start-{number}-" + os.environ["RANK"]).touch()
status = int(sys.argv[1])
end = time.monotonic() + 30
while len(list(pathlib.Path().glob(f"start-{number}-*"))) < 2 and time.monotonic() < end:
    time.sleep(0.02)
if status >= 0:
    sys.exit(status if os.environ["RANK"] == "1" else time.sleep(0.3) or 75 if status == 75 else status)
while not told and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(float(sys.argv[2]))
sys.exit(75)
"""


def launch(
    *options: str,
    status: int = -1,
    saves: float = 0.0,
    send: str = "",
    late: str = "",
    waits: str = "",
    early: str = "",
) -> None:
    """Print the status of the launcher, and end with 0.

    :param status: of the processes; below 0 they wait for a signal, and then end with 75; below -1 it kills
        them.
    :param saves: seconds that they take for it; :param send: the signal, when both are there.
    :param late: a signal when they have ended; :param waits: a method of the rendezvous that waits for the
        store for longer than the launcher has.
    :param early: a signal while the launcher waits for other machines.
    """
    Path("worker.py").write_text(WORKER)

    def tell() -> None:
        end = time.monotonic() + 30
        while len(list(Path().glob("start-*"))) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), getattr(signal, send))

    stop_workers, end = agent.Agent._stop_workers, os._exit

    def stop_late(*given: object, **named: object) -> None:
        stop_workers(*given, **named)
        if late:
            os.kill(os.getpid(), getattr(signal, late))

    def wait(*given: object) -> int:
        time.sleep(10)
        print("the launcher has waited", file=sys.stderr, flush=True)
        return 0

    def told(status: int) -> None:
        print("status", status, flush=True)
        end(0)

    agent.Agent._stop_workers, os._exit = stop_late, told
    if waits:
        agent.LEAVES = 0.5
        setattr(DynamicRendezvousHandler, waits, wait)
    if early:
        meet = DynamicRendezvousHandler.next_rendezvous

        def told_early(handler: DynamicRendezvousHandler) -> object:
            os.kill(os.getpid(), getattr(signal, early))
            time.sleep(2)
            return meet(handler)

        DynamicRendezvousHandler.next_rendezvous = told_early
    if send:
        threading.Thread(target=tell, daemon=True).start()
    for name in [
        name
        for name in os.environ
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    ]:
        del os.environ[name]
    arguments = ["--standalone", "--nproc_per_node=2", *options, "worker.py", str(status), str(saves)]
    found = main(arguments)
    os._exit = end
    print("status", found, file=sys.stdout, flush=True)


def run(options: list[str], **given: object) -> None:
    launch(*options, **given)
