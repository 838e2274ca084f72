"""``import hekaton``: training, loading and building models from Python."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hekaton
from hekaton.testing import run_command, run_processes

SCRIPT = Path(__file__).with_name("python_api.py")


def test_what_it_lists_is_there_and_documented():
    assert dir(hekaton) == sorted(["__version__", *hekaton._MODULES])
    for name in dir(hekaton):
        assert getattr(hekaton, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        hekaton.lod  # noqa: B018


def test_importing_it_and_reading_runs_imports_no_torch(tmp_path):
    (tmp_path / "config.toml").write_text("[training]\nsteps = 2\n")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.5}\n{"step": 1, "validation_loss": 3}\n{"st'
    )
    code = (
        "import hekaton, sys; assert 'pydantic' not in sys.modules; (run,) = hekaton.runs('.');"
        "print(run.config, run.metrics, run.validation, run.steps, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == (
        "{'training': {'steps': 2}} [{'step': 1, 'loss': 2.5}] [{'step': 1, 'validation_loss': 3}] [] False"
    )


def test_a_training_is_what_the_command_line_does_and_so_is_a_second_one(tmp_path):
    run_processes(SCRIPT, "twice", processes=1, cwd=tmp_path, timeout=120)
    first, second = json.loads((tmp_path / "losses.json").read_text())
    assert first == second
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "run.toml", tmp_path / "other")
    done = run_command("train", "run.toml", cwd=tmp_path / "other")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "other/outputs/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == first
    assert len(re.findall(r"step +\d+  loss", done.stderr)) == len(first)


def test_the_code_of_the_page_runs(tmp_path):
    page = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "python.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    (tmp_path / "page.py").write_text("def run():\n" + textwrap.indent("\n".join(blocks), "    "))
    (done,) = run_processes(tmp_path / "page.py", "run", processes=1, cwd=tmp_path, timeout=60)
    for line in (
        "unknown field 'step' in [training]",
        "did you mean 'steps'?",
        "run in outputs, step 20, loss ",
    ):
        assert line in done.stdout


def test_elsewhere_and_sharded(tmp_path):
    run_processes(SCRIPT, "from_elsewhere", processes=1, cwd=tmp_path, timeout=120)
    run_processes(SCRIPT, "sharded", processes=2, timeout=120, folder=str(tmp_path / "moved"))


@pytest.mark.parametrize("what", ["initial_weights", "no_traces", "interrupted", "memory", "errors"])
def test_in_a_process_of_its_own(what, tmp_path):
    run_processes(SCRIPT, what, processes=1, cwd=tmp_path, timeout=120)
