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


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # of the compiler, which a user sees once
def test_products_in_low_precision_are_compared_on_a_cpu_too(monkeypatch, capsys):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import float8

    before = sorted(path.name for path in (REPOSITORY / "benchmarks/results").iterdir())
    monkeypatch.setattr(sys, "argv", ["float8.py"])
    with pytest.raises(SystemExit):
        float8.main()
    assert "there is no GPU to measure; --small runs" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["float8.py", "--small"])
    status = float8.main()
    tables = capsys.readouterr().out.partition("# CPU\n")[2]
    assert status == 0, tables
    for stage, recipes in (
        ("products", ["bfloat16", "tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise", "mxfp8"]),
        ("experts", ["bfloat16", "rowwise", "blockwise", "mxfp8"]),
        ("layers", ["bfloat16", "tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise", "mxfp8"]),
        ("curves", ["bfloat16", "float8 tensorwise", "float8 rowwise", "mxfp8"]),
    ):
        rows = tables.partition(f"## {stage}\n")[2].partition("\n## ")[0]
        for recipe in recipes:
            assert f"| {recipe} |" in rows, (stage, recipe, rows)
    assert "error" not in tables
    assert before == sorted(path.name for path in (REPOSITORY / "benchmarks/results").iterdir())


def test_an_unknown_stage_is_rejected():
    command = [sys.executable, "benchmarks/gpu.py", "--out", "nowhere", "--only", "layer"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no stage layer; stages: environment, " in done.stderr
