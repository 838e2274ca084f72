"""The benchmark for a GPU runs whole on a CPU, at small sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_stage_runs_on_a_cpu_and_gives_rows(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path), "--device", "cpu", "--small"]
    done = subprocess.run(
        [*command, "--budget", "570"], cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=590,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "report.json").read_text())
    assert set(results) == {
        "environment", "tests", "quick_start", "layers", "recompute", "checkpoint", "profile", "syncs"
    }  # fmt: skip
    for stage, result in results.items():
        assert result["status"] == "done", (stage, result)
        assert result["rows"], stage
    for stage in ("layers", "recompute", "syncs"):
        assert not any("error" in row for row in results[stage]["rows"]), results[stage]
    assert results["quick_start"]["rows"][0]["largest difference"] == 0
    assert "| compiled, documents, 2 rows: hekaton |" in (tmp_path / "report.md").read_text()


def test_an_unknown_stage_is_rejected():
    command = [sys.executable, "benchmarks/gpu.py", "--out", "nowhere", "--only", "layer"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no stage layer; stages: environment, " in done.stderr
