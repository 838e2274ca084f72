"""What differs between the machines of a run is told before the first step, by both of them.

The two machines are two processes here, the second in a mount namespace of its own. What it has of its own is
mounted there over what the two share.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

LATE = 90
"""Seconds by which one of two machines comes later."""


@functools.cache
def can_be_made() -> bool:
    """Whether this user may make mount namespaces."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_be_made(), reason="mount namespaces cannot be made here"),
]

RUN = """
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "byte"
overrides = {n_layers = 1, dim = 32, n_heads = 2, n_kv_heads = 2, hidden_dim = 64}
[training]
dataset = "text"
dataset_path = "data"
seq_len = 64
local_batch_size = 1
steps = 3
mixed_precision_param = "float32"
[checkpoint]
enable = true
interval = 2
"""


@dataclass(frozen=True)
class Machine:
    """How the process of one machine ended, and what it wrote to the console."""

    status: int
    console: str

    @property
    def error(self) -> str:
        """The error that it ended with, without what was logged before."""
        start = self.console.find("error: ")
        assert start >= 0, self.console
        return self.console[start:].strip()


def run_on_two_machines(
    *words: str,
    folder: Path,
    prepare: str = ":",
    of_second: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    agents: bool = False,
    timeout: float = 150.0,
) -> tuple[Machine, Machine]:
    """Run ``hekaton train WORDS`` on both, in ``folder``: see :func:`start_on_two_machines`."""
    return ended(
        start_on_two_machines(
            *words,
            folder=folder,
            prepare=prepare,
            of_second=of_second,
            environment=environment,
            agents=agents,
        ),
        timeout=timeout,
    )


def start_on_two_machines(
    *words: str,
    folder: Path,
    prepare: str = ":",
    of_second: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    agents: bool = False,
) -> list[subprocess.Popen[str]]:
    """Start ``hekaton train WORDS`` on both, in ``folder``.

    :param prepare: shell commands in the namespace of the second one, before its process starts.
    :param of_second: further words of the second one.
    :param environment: further variables of the second one.
    :param agents: start each process by an agent of torchrun, in place of the variables that those set.
    """
    port = str(_free_port())
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = []
    for rank, own in enumerate(([], of_second)):
        if agents:
            launcher = [
                "-m", "hekaton.launch", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}",
                "--master_addr=127.0.0.1", f"--master_port={port}", "-m", "hekaton",
            ]  # fmt: skip
            place = {}
        else:
            launcher = ["-m", "hekaton"]
            place = {
                "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1",
                "GROUP_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
        command = [sys.executable, *launcher, "train", *words, *own]
        variables = {**shared, **place}
        if rank:
            command = ["unshare", "-m", "bash", "-c", f'set -e; {prepare}; exec "$@"', "_", *command]
            variables |= environment or {}
        running.append(
            subprocess.Popen(
                command,
                cwd=folder,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return running


def ended(running: Sequence[subprocess.Popen[str]], *, timeout: float) -> tuple[Machine, Machine]:
    """Wait for what was started.

    :param timeout: seconds for each.
    """
    machines = []
    try:
        for process in running:
            console, _ = process.communicate(timeout=timeout)
            machines.append(Machine(process.returncode, console))
    finally:
        for process in running:
            process.kill()
            process.wait()
    first, second = machines
    return first, second


def _free_port() -> int:
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return with_run(tmp_path)


def with_run(folder: Path) -> Path:
    (folder / "run.toml").write_text(RUN)
    (folder / "data").mkdir()
    (folder / "data" / "a.txt").write_text("All the words of this file are the same on both machines. " * 50)
    return folder


@pytest.fixture(scope="module", autouse=True)
def late(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[subprocess.Popen[str]]]]:
    """Two machines that are alike, of which the second comes late; the other tests run meanwhile."""
    folder = with_run(tmp_path_factory.mktemp("late"))
    (folder / "data" / "b.txt").write_text("Größe, Maß und Länge, naïveté. " * 20, encoding="utf-8")
    (folder / "clock").mkdir()
    (folder / "clock" / "sitecustomize.py").write_text(
        "import time\nright = time.time\ntime.time = lambda: right() + 3600\n"
    )
    running = start_on_two_machines(
        "run.toml", "--parallelism.data_parallel_replicate_degree", "2", "--fault.compare_replicas_every", "1",
        folder=folder,
        prepare=f"sleep {LATE}",
        environment={
            "PYTHONPATH": str(folder / "clock"), "PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        },
    )  # fmt: skip
    yield folder, running
    for process in running:
        process.kill()
        process.wait()


def test_a_checkpoint_folder_on_a_disk_of_its_own_is_refused(folder: Path) -> None:
    machines = run_on_two_machines(
        "run.toml", folder=folder, agents=True, prepare="mkdir -p own outputs; mount --bind own outputs"
    )
    text = "".join(machine.console for machine in machines)
    assert "the checkpoint folder outputs/checkpoint is not one folder for all machines: rank 0" in text
    assert "or checkpoint.folder to a URL such as s3://bucket/run" in text
    assert "parameters" not in text, "the model was built"
    assert not list(folder.glob("*/checkpoint/step-*"))
    assert all(machine.status for machine in machines)


def test_a_read_only_checkpoint_folder_is_refused(folder: Path) -> None:
    (folder / "outputs").mkdir()
    machines = run_on_two_machines(
        "run.toml", folder=folder, prepare="mount --bind outputs outputs; mount -o remount,ro,bind outputs"
    )
    text = "".join(machine.console for machine in machines)
    assert (
        "cannot write to the checkpoint folder outputs/checkpoint: Read-only file system, on rank 1" in text
    )
    assert "parameters" not in text, "the model was built"
    assert [machine.status for machine in machines] == [2, 2]


def test_configuration_source_and_version_are_compared_before_anything_is_built(folder: Path) -> None:
    """Lengths with which machines wait for each other for ever, and values that no run notices."""
    model = Path(importlib.util.find_spec("hekaton_llama3").submodule_search_locations[0], "model.py")
    (folder / "model.py").write_text(model.read_text() + "\nANOTHER = 1\n")
    metadata = Path(str(importlib.metadata.distribution("hekaton")._path), "METADATA")
    (folder / "METADATA").write_text(metadata.read_text().replace("Version: 0.1.0", "Version: 0.1.9"))
    differing = {
        "optimizer.lr": "0.5", "debug.seed": "3", "training.seq_len": "32", "training.steps": "7",
        "model.overrides.n_layers": "2", "model.overrides.hidden_dim": "96", "checkpoint.interval": "3",
        "training.mixed_precision_param": "float64",
    }  # fmt: skip
    machines = run_on_two_machines(
        "run.toml",
        folder=folder,
        agents=True,
        prepare=f"mount --bind model.py {model}; mount --bind METADATA {metadata}",
        of_second=[word for name, value in differing.items() for word in (f"--{name}", value)],
        environment={"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "2"},
    )
    for machine in machines:
        for name, value in differing.items():
            assert f"\n  {name}: " in machine.error
            assert f", {value} on rank 1 (" in machine.error
        assert "\n  hekaton: 0.1.0 on rank 0 (" in machine.error
        assert "\n  source of hekaton_llama3/model.py: " in machine.error
        for name in ("instructions of the processor", "random numbers of the processor"):
            assert f"\n  {name}: " in machine.error
        assert "\n  threads of the process: 1 on rank 0 (" in machine.error
        assert "parameters" not in machine.console, "the model was built"
        assert "Traceback" not in machine.console
        assert machine.status == 2


def test_different_data_and_tokenizers_are_reported(folder: Path) -> None:
    shipped = Path(importlib.util.find_spec("hekaton_hf").submodule_search_locations[0], "assets")
    shutil.copytree(next(shipped.iterdir()), folder / "assets")
    tokenizer = folder / "assets" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["added_tokens"][-1]["normalized"] = not content["added_tokens"][-1]["normalized"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "other").mkdir()
    (folder / "other" / "a.txt").write_text(
        (folder / "data" / "a.txt").read_text().replace("same", "some", 1)
    )
    machines = run_on_two_machines(
        "run.toml", "--model.tokenizer", "hf", "--model.hf_assets_path", "assets",
        "--model.overrides.vocab_size", "4096",
        folder=folder,
        prepare=f"mount --bind other data; mount --bind tokenizer.json {tokenizer}",
    )  # fmt: skip
    assert machines[0].error == machines[1].error
    assert "\n  tokenizer: " in machines[0].error
    assert "\n  training data: " in machines[0].error
    assert [machine.status for machine in machines] == [2, 2]


def test_a_plugin_missing_on_one_machine_is_reported(folder: Path) -> None:
    installed = importlib.metadata.distribution("hekaton-tensorboard")._path
    (folder / "empty").mkdir()
    prepare = f"mount --bind empty {installed}"
    named = run_on_two_machines(
        "run.toml", "--metrics.loggers", "tensorboard", folder=folder, prepare=prepare
    )
    assert "unknown logger 'tensorboard'" in named[1].error
    assert "rank 1 on " in named[0].error
    assert "unknown logger 'tensorboard'" in named[0].error
    unnamed = run_on_two_machines("run.toml", folder=folder, prepare=prepare)
    for machine in unnamed:
        assert "\n  hekaton-tensorboard: 0.1.0 on rank 0 (" in machine.error
        assert ", not installed on rank 1 (" in machine.error


def test_a_broken_line_in_the_data_of_one_machine_is_reported(folder: Path) -> None:
    for name, line in (("data", '{"text": "whole"}'), ("other", '{"text": "cut sh')):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "b.jsonl").write_text('{"text": "the first"}\n' + line + "\n")
    (folder / "data" / "a.txt").unlink()
    machines = run_on_two_machines("run.toml", folder=folder, prepare="mount --bind other data")
    for machine in machines:
        assert "/b.jsonl', line 2" in machine.error
        assert "Traceback" not in machine.console
        assert machine.status == 2
    assert "rank 1 on " in machines[0].error


@pytest.mark.timeout(400)
def test_machines_that_are_alike_train_though_one_is_late_and_its_clock_wrong(
    late: tuple[Path, list[subprocess.Popen[str]]],
) -> None:
    """They have the same host name, too. The locale of the second one is that of ASCII, and its sets have another
    order: its replica is equal to the bit all the same."""
    folder, running = late
    machines = ended(running, timeout=LATE + 150)
    assert [machine.status for machine in machines] == [0, 0], machines
    manifests = list((folder / "outputs" / "checkpoint").glob("step-*/manifest.json"))
    assert sorted(path.parent.name for path in manifests) == ["step-2", "step-3"]
