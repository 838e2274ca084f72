"""Run a function on several real processes, over gloo on CPU, as distributed tests need it."""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEGREES = {
    "replicate": "data_parallel_replicate_degree",
    "shard": "data_parallel_shard_degree",
    "cp": "context_parallel_degree",
    "tp": "tensor_parallel_degree",
    "pp": "pipeline_parallel_degree",
}


@dataclass(frozen=True)
class NamedLayout:
    """A layout by its short name.

    :param name: the degrees that are not 1, as ``shard2 tp2``; empty for a single process.
    """

    name: str

    @property
    def degrees(self) -> dict[str, int]:
        """Axis (``replicate``, ``shard``, ``cp``, ``tp``, ``pp``) -> degree."""
        words = [re.fullmatch(r"([a-z]+)(\d+)", word) for word in self.name.split()]
        assert all(word is not None and word[1] in _DEGREES for word in words), self.name
        return dict.fromkeys(_DEGREES, 1) | {word[1]: int(word[2]) for word in words if word is not None}

    @property
    def processes(self) -> int:
        return math.prod(self.degrees.values())

    @property
    def dp(self) -> int:
        """Ranks that read different rows of the batch."""
        return self.degrees["replicate"] * self.degrees["shard"]

    @property
    def flags(self) -> list[str]:
        """The flags of ``hekaton train`` that choose it."""
        return [
            word
            for axis, degree in self.degrees.items()
            for word in (f"--parallelism.{_DEGREES[axis]}", str(degree))
        ]


def run_processes(
    file: str | Path, function: str, *, processes: int, timeout: float = 90.0, **arguments: Any
) -> None:
    """Call ``function(**arguments)`` of a Python file on ``processes`` processes with one thread each.

    The environment is that of torchrun (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``,
    ``MASTER_PORT``), so that ``torch.distributed.init_process_group("gloo")`` works in the function.

    :param arguments: JSON values.
    :raises AssertionError: with the output of the processes that failed, or were not done in ``timeout``
        seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "error", "-m", __name__, str(file), function, json.dumps(arguments)]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, f"rank{rank}") for rank in range(processes)]
        running = []
        for rank, output in enumerate(outputs):
            environment = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            }  # fmt: skip
            with output.open("w") as stream:
                running.append(
                    subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
                )
        try:
            failed = _wait(running, timeout)
        finally:
            for process in running:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if failed:
            text = "\n".join(
                f"--- rank {rank}, status {running[rank].returncode}\n{outputs[rank].read_text()}"
                for rank in failed
            )
            raise AssertionError(f"{function} on {processes} processes:\n{text}")


def _wait(running: list[subprocess.Popen[bytes]], timeout: float) -> list[int]:
    """The ranks that failed, or are still running when time is up; one failure ends the wait."""
    end = time.monotonic() + timeout
    while any(process.poll() is None for process in running):
        failed = [rank for rank, process in enumerate(running) if process.poll() not in (None, 0)]
        if failed:
            return failed
        if time.monotonic() > end:
            return [rank for rank, process in enumerate(running) if process.poll() is None]
        time.sleep(0.05)
    return [rank for rank, process in enumerate(running) if process.returncode != 0]


def _main(file: str, function: str, arguments: str) -> None:
    faulthandler.enable()
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    getattr(module, function)(**json.loads(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    # What is tested has passed. Threads of torch that outlive their group can abort the interpreter's own
    # end, which was seen with Python 3.11.2 after errors that tests provoke.
    os._exit(0)


if __name__ == "__main__":
    _main(*sys.argv[1:])
