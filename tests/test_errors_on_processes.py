"""An error of several processes is shown once, with the line that matters last."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from hekaton.testing import run_command

TINY = [
    "--model.tokenizer", "byte", "--training.mixed_precision_param", "float32", "--training.steps", "2",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}',
    "--training.seq_len", "16", "--training.local_batch_size", "2", "--lr_scheduler.warmup_steps", "0",
    "--plugins.load", "raises.py", "--lr_scheduler.name", "raises",
]  # fmt: skip

PLUGIN = """
import os

import torch.distributed as dist
from hekaton.contributions import LRSchedule, Ref, hookimpl
from hekaton.errors import DataError

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_lr_schedules():
    return [LRSchedule("raises", build=Ref("raises:build"))]


def build(section, settings, steps):
    def factor(done):
        what = os.environ["RAISES"]
        if what == "on every rank":
            raise ValueError("two lines,\\nof which the first says what")
        if what == "user error":
            raise DataError("the file is gone", hint="look for it")
        if what == "on rank 1" and dist.get_rank() == 1:
            raise ValueError("only here")
        if what == "ends the process" and dist.get_rank() == 1:
            raise SystemExit(0)
        if what == "killed" and dist.get_rank() == 1:
            os.kill(os.getpid(), 9)
        dist.barrier()
        return 1.0
    return factor
"""


@pytest.fixture
def launch(tmp_path):
    (tmp_path / "raises.py").write_text(PLUGIN)

    def launch(raises: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "hekaton.launch", "--standalone", "--nproc_per_node=2", "-m",
             "hekaton.train", *TINY],
            cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False,
            env=os.environ | {"RAISES": raises, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        for report in ("ChildFailedError", "Root Cause", "torch.distributed.elastic"):
            assert report not in done.stderr
        return done.returncode, done.stderr

    return launch


def test_an_exception_on_every_process_is_shown_once(launch):
    status, said = launch("on every rank")
    assert status == 1
    assert said.count("Traceback (most recent call last)") == 1
    assert said.count("]: ValueError: two lines,") == 1
    assert said.splitlines()[-4].endswith("]: ValueError: two lines,")
    assert re.fullmatch(
        r"error: rank [01] on \S+ failed in step 1 \(optimizer\): ValueError: two lines,",
        said.splitlines()[-2],
    )


@pytest.mark.slow
def test_an_error_of_the_user_on_every_process_is_shown_once(launch):
    status, said = launch("user error")
    assert status == 2
    assert said.count("error: the file is gone") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_of_an_exception_on_one_process_the_others_show_no_traceback(launch):
    status, said = launch("on rank 1")
    assert status == 1
    assert said.count("Traceback (most recent call last)") == 1
    assert "[rank1]: ValueError: only here\n" in said


@pytest.mark.slow
def test_a_process_that_is_killed_is_named(launch):
    status, said = launch("killed")
    assert status == 128 + 9
    assert "error: rank 1 was ended by SIGKILL" in said


def test_a_plugin_that_ends_the_process_ends_the_run_with_an_error(tmp_path):
    (tmp_path / "raises.py").write_text(PLUGIN)
    done = run_command(
        "train", *TINY, processes=2, cwd=tmp_path, environment=os.environ | {"RAISES": "ends the process"}
    )
    assert done.returncode == 2
    said = done.ranks[1].stderr
    assert "error: factor() was about to end the process: SystemExit(0)" in said
    assert f"{tmp_path / 'raises.py'}, line " in said
    assert "Traceback" not in done.stderr
