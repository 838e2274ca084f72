"""Functions that test_launcher.py and test_launcher_server.py have called in processes of their own."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from hekaton.testing import client, preload, server


def tell(result: str) -> None:
    """Write down what this process is, one file per rank."""
    rank = os.environ.get("RANK", "0")
    described = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "threads": len(os.listdir("/proc/self/task")) - jemalloc_threads(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.is_initialized(),
        "process_group": dist.is_initialized(),
        "random": [random.random(), float(np.random.random()), torch.rand(()).item(), str(uuid.uuid4())],
        "patched": getattr(time, "patched_by_a_test", False),
        "path": sys.path,
        "argv": sys.argv,
        "descriptors": sorted(os.readlink(f"/proc/self/fd/{n}") for n in ("0", "1", "2")),
    }
    Path(f"{result}-{rank}").write_text(json.dumps(described))


def jemalloc_threads() -> int:
    names = [Path("/proc/self/task", task, "comm").read_text() for task in os.listdir("/proc/self/task")]
    return names.count("jemalloc_bg_thd\n")


def open_descriptors(result: str) -> None:
    kinds = []
    for number in os.listdir("/proc/self/fd"):
        try:
            kinds.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    Path(result).write_text(json.dumps(kinds))


def end(how: str) -> None:
    print("on stdout", flush=True)  # a signal leaves no time to write what is buffered
    print("on stderr", file=sys.stderr)
    if how == "raise":
        raise ValueError("wrong")
    if how == "exit":
        sys.exit(3)
    if how == "warn":
        warnings.warn("careful", DeprecationWarning, stacklevel=1)
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)


def sleep() -> None:
    # A shell has what it runs in the background ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("sleeps", flush=True)
    time.sleep(60)


def the_second_of_two_sleeps() -> None:
    if os.environ["RANK"] == "1":
        sleep()


def the_second_of_two_fails() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("of rank 1")
    time.sleep(60)


def sleep_with_a_child() -> None:
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)


def all_reduce(result: str) -> None:
    dist.init_process_group("gloo")
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        Path(result).write_text(str(total.item()))
    dist.destroy_process_group()


def threads_are_noticed() -> None:
    assert preload.other_threads() == []
    assert preload.unclean() == []
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert len(preload.other_threads()) == 1
    assert len(preload.unclean()) == 1
    done.set()
    thread.join()
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    assert "a process group" in preload.unclean()


def a_client_comes_while_the_server_leaves(folder: str) -> None:
    """The last client goes while another one has the folder's lock, and then asks."""
    address = str(Path(folder, "socket"))
    found = []

    def clients() -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(address)
            with server.locked(Path(folder)) as ours:
                assert ours
                last.close()
                time.sleep(0.1)  # in which the server would leave
                with socket.socket(socket.AF_UNIX) as next_one:
                    next_one.connect(address)
                    found.append(client._ask(next_one, {"current": True}))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        sources = preload.Sources(since=time.time())
        serving = server._Server(listener, Path(folder), sources=sources, environment={})
        thread = threading.Thread(target=clients)
        thread.start()
        assert serving.serve() is None
        thread.join()
    assert found == [{"changed": ""}]
    assert not Path(folder).exists()
