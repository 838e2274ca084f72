"""A signal ends the step in hand, saves, and ends the run with a status that says to start it again."""

import json
import os
import re
import signal
import time

import pytest

from hekaton.testing import run_command

PLUGIN = """
import atexit
import multiprocessing
import os
import re
import signal
import threading
import time

from hekaton.contributions import hookimpl


@hookimpl
def hekaton_step_ended(step, metrics, control):
    if step == 2 and os.environ.get("RANK", "0") == os.environ["SIGNALLED"]:
        exec(os.environ["THEN"])


@hookimpl
def hekaton_run_ended(step, error):
    exec(os.environ.get("ENDED", ""))
"""
EARLY = """
import os
import signal
import time

from hekaton.contributions import Dataset, Ref, hookimpl


def build(*given, **named):
    os.kill(os.getpid(), signal.{name})
    time.sleep(60)


@hookimpl
def hekaton_datasets():
    return [Dataset("early", build=Ref("signalling:build"), summary="is told to end")]
"""
FLAGS = [
    "--model.tokenizer", "byte",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 258}',
    "--training.steps", "5", "--training.seq_len", "16", "--training.global_batch_size", "4",
    "--training.local_batch_size", "2", "--training.mixed_precision_param", "float32",
    "--activation_checkpoint.mode", "none", "--lr_scheduler.warmup_steps", "0", "--metrics.log_freq", "1",
]  # fmt: skip
SAVED = ["--checkpoint.enable", "--checkpoint.interval", "100"]


@pytest.fixture
def train(tmp_path):
    (tmp_path / "signalling.py").write_text(PLUGIN)

    def run(*flags, then="pass", rank=0, processes=1, **environment):
        return run_command(
            "train", *FLAGS, "--plugins.load", "signalling.py", *flags, processes=processes, cwd=tmp_path,
            environment={**os.environ, "OMP_NUM_THREADS": "1", "SIGNALLED": str(rank), "THEN": then}
            | environment,
        )  # fmt: skip

    return run


def losses(done):
    found = re.findall(r"  step +(\d+)  loss ([\d.]+) ", done.stderr)
    return {int(step): loss for step, loss in found}


def kill(name):
    """The code that sends this process a signal and waits until it has arrived."""
    return f"os.kill(os.getpid(), signal.{name})\nwhile not control._asked.stop: time.sleep(0.01)"


@pytest.mark.parametrize(
    ("name", "processes", "rank", "saved"), [("SIGTERM", 1, 0, 2), ("SIGUSR1", 2, 1, 3), ("SIGINT", 1, 0, 2)]
)
def test_a_run_saves_between_intervals_and_resumes_where_it_was(
    name, processes, rank, saved, train, tmp_path
):
    """On two processes one of them gets the signal, and both stop a step later."""
    undisturbed = losses(train())
    first = train(*SAVED, then=kill(name), rank=rank, processes=processes)
    assert first.returncode == 75, first.stderr
    assert {one.returncode for one in first.ranks} == {75}
    assert f"stopping after step {saved}: received {name}" in first.stderr
    assert (tmp_path / "outputs" / "checkpoint" / f"step-{saved}" / "manifest.json").is_file()
    second = train(*SAVED, processes=processes)
    assert second.returncode == 0, second.stderr
    assert list(losses(second)) == list(range(saved + 1, 6))
    if processes == 1:
        assert losses(first) | losses(second) == undisturbed


@pytest.mark.parametrize(
    ("name", "processes", "status"), [("SIGTERM", 1, 75), ("SIGINT", 1, 130), ("SIGTERM", 2, 143)]
)
def test_before_the_first_step_there_is_nothing_to_save(name, processes, status, train, tmp_path):
    (tmp_path / "signalling.py").write_text(EARLY.format(name=name))
    done = train(*SAVED, "--training.dataset", "early", processes=processes)
    assert done.returncode == status
    assert done.stderr == f"error: received {name} while there was nothing to save\n"


def test_a_signal_while_plugins_are_looked_for_is_answered(train, tmp_path):
    (tmp_path / "signalling.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    done = train(*SAVED)
    assert (done.returncode, done.stderr) == (75, "error: received SIGTERM while there was nothing to save\n")


def test_without_a_checkpoint_the_status_is_that_of_an_interruption(train):
    done = train(then=kill("SIGTERM"))
    assert done.returncode == 130
    assert "step 2 is not saved: checkpoint.enable is false" in done.stderr


def test_at_the_last_step_the_run_is_done(train):
    done = train("--training.steps", "2", *SAVED, then=kill("SIGTERM"))
    assert done.returncode == 0, done.stderr


def test_two_signals_at_once_are_one(train):
    assert train(*SAVED, then=f"{kill('SIGINT')}\n{kill('SIGINT')}").returncode == 75


def test_a_second_signal_ends_the_run_at_once(train, tmp_path):
    done = train(*SAVED, then=f"{kill('SIGINT')}\ntime.sleep(1.2)\n{kill('SIGTERM')}\ntime.sleep(60)")
    assert done.returncode == 128 + signal.SIGTERM
    assert "a second signal ends the run at once" in done.stderr
    assert not (tmp_path / "outputs" / "checkpoint" / "step-2").exists()


WHILE_IT_ENDS = """
import torch.distributed as dist
time.sleep(1.2)
os.kill(os.getpid(), signal.SIGTERM)
def told(destroy=dist.destroy_process_group):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    destroy()
dist.destroy_process_group = told
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_the_run_has_ended_does_not_change_its_status(train):
    """As srun sends one to a rank that is still there when another one has ended with 75."""
    done = train(*SAVED, then=kill("SIGTERM"), rank=1, processes=2, ENDED=WHILE_IT_ENDS)
    assert {one.returncode for one in done.ranks} == {75}, done.stderr


def test_a_signal_to_a_rank_that_has_failed_does_not_change_its_status(train):
    """As srun sends one to a rank that is still there when another one has ended with the same error."""
    failure = "from hekaton.errors import TrainingError\nraise TrainingError('odd')"
    done = train(then=failure, rank=1, processes=2, ENDED=WHILE_IT_ENDS.replace("time.sleep(1.2)", ""))
    assert {one.returncode for one in done.ranks} == {2}, done.stderr
    assert done.ranks[1].stderr == "rank 1: error: odd\n"


def test_a_rank_that_is_ended_because_another_one_has_failed_ends_with_the_status_of_that(train, tmp_path):
    """As srun does it, before the first step: its status is the highest of all."""
    failing = """if os.environ["RANK"] == "1":
        raise DataError("no data here")
    os.kill(os.getpid(), signal.SIGTERM)
    dist.barrier()"""
    plugin = EARLY.replace("os.kill(os.getpid(), signal.{name})\n    time.sleep(60)", failing)
    imports = "import torch.distributed as dist\nfrom hekaton.errors import DataError\n"
    (tmp_path / "signalling.py").write_text(imports + plugin)
    done = train("--training.dataset", "early", processes=2)
    assert {one.returncode for one in done.ranks} == {2}, done.stderr
    assert [one.stderr for one in done.ranks] == ["", "rank 1: error: no data here\n"]


def test_a_run_that_hangs_ends_at_the_limit_and_shows_where(train):
    done = train("--fault.stop_seconds", "0.5", then=f"{kill('SIGTERM')}\nthreading.Event().wait(60)")
    assert done.returncode == 128 + signal.SIGTERM
    assert "the run has not ended 0.5 s after SIGTERM" in done.stderr
    assert "in hekaton_step_ended" in done.stderr


def test_workers_of_the_loader_leave_signals_of_the_group_to_the_run(train):
    group = "[os.kill(p, s) for p in [c.pid for c in multiprocessing.active_children()] + [os.getpid()]" \
        " for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]"  # fmt: skip
    done = train(*SAVED, "--training.dataloader.num_workers", "2", then=f"assert len({group}) == 9")
    assert done.returncode == 75, done.stderr


def test_workers_of_the_loader_go_on_after_a_sigterm(train):
    """They read the rows of the steps until the run has saved and ends."""
    workers = """
for worker in multiprocessing.active_children():
    os.kill(worker.pid, signal.SIGTERM)
time.sleep(0.5)
assert all(worker.is_alive() for worker in multiprocessing.active_children())
"""
    rows = ["--training.dataloader.num_workers", "2", "--training.dataloader.prefetch_factor", "1"]
    done = train("--training.steps", "9", *rows, then=workers)
    assert done.returncode == 0, done.stderr
    assert "step      9" in done.stderr


def test_slurm_ends_the_job_soon(train):
    soon = {"SLURM_JOB_END_TIME": str(int(time.time()) + 3000)}
    done = train(*SAVED, "--fault.save_before_seconds", "3600", **soon)
    assert done.returncode == 75, done.stderr
    assert "SLURM ends the job in less than fault.save_before_seconds = 3600" in done.stderr
    assert losses(done).keys() == {1}
    at_once = r"notice: fault.save_before_seconds = 3600, and the job ends in (29\d\d|3000) s: the run saves and stops after its"
    assert re.search(at_once, done.stderr)
    done = train(*SAVED, "--fault.save_before_seconds", "60", **soon)
    assert done.returncode == 0
    assert "the job ends in" not in done.stderr


def test_an_unknown_end_of_the_job_gives_a_notice(train):
    done = train("--fault.save_before_seconds", "60", SLURM_JOB_END_TIME="")
    assert done.returncode == 0
    assert "fault.save_before_seconds: no effect where the end of the job is not known" in done.stderr


def test_a_hook_that_stops_a_run_means_that_it_is_done(train, tmp_path):
    done = train(*SAVED, then="control.ask(save=True, stop=True, reason='enough')")
    assert done.returncode == 0
    manifest = tmp_path / "outputs" / "checkpoint" / "step-2" / "manifest.json"
    assert json.loads(manifest.read_text())["step"] == 2
