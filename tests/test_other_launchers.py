"""Processes that other launchers than torchrun start are one run: Open MPI's ``mpirun`` where it is installed, and ``srun``
of a SLURM of two nodes that is made on this machine for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "operations"))

import lab_slurm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
needs_mpirun = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="there is no mpirun here (Debian: openmpi-bin)"
)
needs_slurm = pytest.mark.skipif(bool(lab_slurm.why_not()), reason=lab_slurm.why_not())
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
    with lab_slurm.Slurm(folder):
        (folder / "run.toml").write_text(RUN)
        yield folder


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
