"""What ``hekaton.launch`` does with signals, and with processes that have ended: it starts no process again that was
told to end."""

import os
from pathlib import Path

import pytest

from hekaton.testing import run_processes

SCRIPT = Path(__file__).with_name("launched_on_processes.py")


def launched(folder, options=(), **given):
    """The launcher's status, how often each rank was started, and what the launcher wrote."""
    (done,) = run_processes(SCRIPT, "run", processes=1, cwd=folder, options=list(options), **given)
    starts = [len(list(folder.glob(f"start-*-{rank}"))) for rank in (0, 1)]
    return int(done.stdout.split()[-1]), starts, done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_is_passed_on_and_the_status_is_that_of_the_processes(tmp_path, name):
    assert launched(tmp_path, ["--max-restarts=2"], send=name)[:2] == (75, [1, 1])


@pytest.mark.parametrize(
    ("name", "tasks", "status"), [("SIGTERM", "1", 75), ("SIGUSR1", "2", 138), ("SIGINT", "2", 130)]
)
def test_a_signal_before_the_start_of_the_processes_has_the_status_of_their_early_end(
    tmp_path, name, tasks, status
):
    """Under srun it is that of the signal, which does not hide the error of another task."""
    environment = {**os.environ, "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": tasks}
    assert launched(tmp_path, early=name, environment=environment)[:2] == (status, [0, 0])


def test_processes_that_a_signal_kills_before_they_answer_it_have_the_status_of_an_early_end(tmp_path):
    assert launched(tmp_path, send="SIGTERM", status=-2)[:2] == (75, [1, 1])


def test_processes_that_were_told_to_end_or_cannot_start_are_not_started_again(tmp_path):
    assert launched(tmp_path, ["--max-restarts=2"], status=75)[:2] == (75, [1, 1])


def test_processes_that_failed_are_started_again(tmp_path):
    assert launched(tmp_path, ["--max-restarts=1"], status=3)[:2] == (3, [2, 2])


def test_processes_that_do_not_end_are_killed_at_the_limit(tmp_path):
    status, starts, said = launched(tmp_path, ["--stop_seconds", "1"], send="SIGTERM", saves=60)
    assert (status, starts) == (128 + 9, [1, 1])
    assert "error: processes have not ended 1 s after a signal: killed" in said


def test_a_signal_after_the_end_of_the_processes_does_not_change_their_status(tmp_path):
    assert launched(tmp_path, ["--max-restarts=1"], status=75, late="SIGTERM")[:2] == (75, [1, 1])


@pytest.mark.parametrize("method", ["num_nodes_waiting", "shutdown"])
def test_the_launcher_does_not_wait_for_a_store_that_is_gone(tmp_path, method):
    status, starts, said = launched(tmp_path, status=3, waits=method)
    assert (status, starts) == (3, [1, 1])
    assert "the launcher has waited" not in said
