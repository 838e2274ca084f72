"""Processes that Open MPI starts are one run: ``mpirun`` itself, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("mpirun") is None, reason="there is no mpirun here (Debian: openmpi-bin)"
    ),
]
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


def test_the_processes_of_mpirun_are_one_run(tmp_path: Path) -> None:
    ended = mpirun(tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert "cpu on 2 process(es)" in ended.stdout
    assert ended.stdout.count("  step      1  ") == 1


def test_a_difference_ends_mpirun_with_the_status_of_the_run(tmp_path: Path) -> None:
    ended = mpirun(tmp_path, "--optimizer.lr", "0.5")
    assert ended.returncode == 2, ended.stdout
    assert "\n  optimizer.lr: 0.0008 on rank 0 (" in ended.stdout
