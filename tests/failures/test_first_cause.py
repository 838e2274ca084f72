"""A rank that fails is what all ranks end with: its host, step, phase and message, and one traceback."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from hekaton.failures.shown import own_error
from hekaton.testing import run_command, run_processes

SCRIPT = Path(__file__).with_name("failures_on_processes.py")
HOST = socket.gethostname()
NEXT = "at the next collective"
CASES = {
    "defect": {"what": [NEXT, "defect"], "machines": 2},
    "defect of the first": {"what": ["defect", NEXT], "machines": 2},
    "one machine": {"what": [NEXT, "defect"], "machines": 1},
    "user error": {"what": [NEXT, "user error"], "machines": 2},
    "both alike": {"what": ["user error", "user error"], "machines": 2},
    "raised on all": {"what": ["raised on all", "raised on all"], "machines": 2},
    "known to all": {"what": ["known to all", "known to all"], "machines": 2},
    "known late": {"what": ["known to all", "known to all, late"], "machines": 2},
    "several": {"what": ["later", "defect"], "machines": 2},
    "cleanup": {"what": [NEXT, "cleanup"], "machines": 2},
    "follows": {"what": ["handles", "defect"], "machines": 2},
    "before": {"what": [NEXT, "fails before"], "machines": 2},
    "never comes": {"what": ["waits", "never comes"], "machines": 2},
}
DEFECT = f"rank 1 on {HOST} failed in step 3 (data): ValueError: only here"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failures")
    run_processes(SCRIPT, "run", processes=2, timeout=100, cases=CASES, folder=str(folder))
    return folder


@pytest.fixture(scope="module")
def ended(folder):
    """Case -> what the two ranks ended with."""
    said = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(2)]
    return {name: [of_rank[name] for of_rank in said] for name in CASES}


@pytest.mark.parametrize("name", ["defect", "cleanup", "follows"])
def test_the_other_machine_ends_with_the_cause(folder, ended, name):
    first, second = ended[name]
    assert (first["type"], first["exit_code"]) == ("RaisedElsewhere", 1)
    lines = first["text"].splitlines()
    assert lines == [DEFECT, f"  its traceback: {folder}/{name}/errors/rank_1.txt on {HOST}"]
    assert (second["type"], second["text"]) == (
        "RuntimeError" if name == "cleanup" else "ValueError",
        second["text"],
    )
    (file,) = (folder / name / "errors").iterdir()
    text = file.read_text()
    assert text.count("ValueError: only here") == 1
    assert f"rank 1 on {HOST}, in step 3 (data)\n" in text


def test_the_cause_is_left_for_the_report_of_torchrun(folder, ended):
    for rank in range(2):
        said = json.loads((folder / f"defect-{rank}-torchrun.json").read_text())
        assert said["message"]["extraInfo"]["py_callstack"].startswith(f"error: {DEFECT}")


def test_a_failure_of_the_first_rank_reaches_the_others_before_its_store_is_gone(ended):
    assert ended["defect of the first"][1]["text"].startswith(DEFECT.replace("rank 1", "rank 0"))


def test_a_machine_reports_a_failure_once(ended):
    assert ended["one machine"][0] == {"type": "RaisedElsewhere", "text": "", "exit_code": 1}


def test_an_error_of_the_user_keeps_its_hint_and_status_and_has_no_traceback(folder, ended):
    first, second = ended["user error"]
    assert second == {"type": "DataError", "text": "the file is gone\n  look for it", "exit_code": 2}
    assert first["text"] == f"rank 1 on {HOST} failed in step 3 (data): the file is gone\n  look for it"
    assert first["exit_code"] == 2
    assert not (folder / "user error" / "errors").exists()


def test_an_error_of_all_ranks_is_reported_once_per_machine(ended):
    texts = sorted(each["text"] for each in ended["both alike"])
    assert texts[1] == "the file is gone\n  look for it"
    assert texts[0].startswith(
        f"rank {'0' if ended['both alike'][0]['type'] == 'DataError' else '1'} on {HOST} failed "
    )
    assert {each["type"] for each in ended["both alike"]} == {"DataError", "RaisedElsewhere"}


def test_an_error_that_one_rank_raises_on_all_is_that_ranks(ended):
    texts = {each["type"]: each["text"] for each in ended["raised on all"]}
    assert (
        texts["RaisedElsewhere"]
        == f"rank 1 on {HOST} failed in step 3 (data): the file is gone\n  look for it"
    )


def test_what_all_are_known_to_raise_stays_as_it_is(ended):
    expected = {"type": "DataError", "text": "machines differ", "exit_code": 2}
    assert ended["known to all"] == [expected, expected]
    assert ended["known late"] == [expected, expected]


def test_of_several_errors_the_earliest_is_named_last(folder, ended):
    first, second = ended["several"]
    assert second["text"] == "only here"
    own, _, cause = first["text"].partition("; before that ")
    kept = folder / "several" / "errors" / "rank_0.txt"
    assert own == f"rank 0 on {HOST} failed, too, in step 3 (data): KeyError: 'another' (traceback: {kept})"
    assert cause.splitlines()[0] == DEFECT
    assert "KeyError: 'another'" in kept.read_text()


def test_who_fails_before_the_processes_meet_is_reported_to_those_that_wait(ended):
    assert ended["before"][0]["text"] == (
        f"rank 1 on {HOST} failed before the first step (start): not on this machine\n  install it"
    )
    assert ended["before"][0]["exit_code"] == 2


def test_processes_that_do_not_connect_are_named(ended):
    first, _ = ended["never comes"]
    assert first["text"].startswith("1 of 2 processes have not connected within 1 s: rank 1\n")
    assert first["exit_code"] == 2


def test_a_process_that_ended_silently_is_named(tmp_path):
    run_processes(SCRIPT, "killed", processes=2, timeout=60, folder=str(tmp_path))
    said = json.loads((tmp_path / "said.json").read_text())
    first, second, third = said["text"].splitlines()
    assert first.startswith(f"rank 0 on {HOST} failed in step 3 (data): ")
    assert (
        second
        == f"  no message from rank 1 on {HOST}: killed (out of memory?), or the machine or its network is gone"
    )
    assert third == f"  its traceback: {tmp_path}/errors/rank_0.txt on {HOST}"


def test_a_process_that_does_not_come_to_a_collective_says_where_it_is(tmp_path):
    run_processes(SCRIPT, "missed", processes=2, timeout=60, folder=str(tmp_path))
    first, second, _ = json.loads((tmp_path / "said.json").read_text())["text"].splitlines()
    assert first.startswith(f"rank 0 on {HOST} failed in step 3 (data): ")
    assert second.startswith(f"  rank 1 on {HOST} has not come: it is in step 7 (data), at ")
    assert second.endswith(" missed")


def test_a_process_that_notices_nothing_is_ended_with_the_cause(tmp_path):
    first, _ = run_processes(SCRIPT, "stuck", processes=2, timeout=60, folder=str(tmp_path))
    assert (tmp_path / "status").read_text() == "2"
    last = [line for line in first.stderr.splitlines() if line.strip()][-2:]
    assert last == [f"error: rank 1 on {HOST} failed in step 3 (data): the file is gone", "  look for it"]


def test_an_error_while_a_broken_collective_is_handled_is_not_the_cause():
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    own = ValueError("mine")
    assert own_error(own) is own
    assert own_error(broken) is None
    broken.__context__ = own
    assert own_error(broken) is own
    later = KeyError("later")
    later.__context__ = RuntimeError("NCCL error: remote process exited")
    assert own_error(later) is None


TINY = [
    "--model.tokenizer", "byte", "--training.mixed_precision_param", "float32", "--training.steps", "3",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}',
    "--training.seq_len", "16", "--training.local_batch_size", "2", "--lr_scheduler.warmup_steps", "0",
    "--plugins.load", "raises.py", "--lr_scheduler.name", "raises",
]  # fmt: skip
PLUGIN = """
import os
from hekaton.contributions import LRSchedule, Ref, hookimpl

HEKATON_API = ">=1,<2"
os.environ["GROUP_RANK"] = os.environ["RANK"]


@hookimpl
def hekaton_lr_schedules():
    return [LRSchedule("raises", build=Ref("raises:build"))]


def build(section, settings, steps):
    def factor(done):
        if done == 1 and os.environ["RANK"] == "1":
            raise ValueError("only here")
        return 1.0
    return factor
"""


def test_a_run_names_step_and_phase_on_the_console_of_the_first_machine(tmp_path):
    (tmp_path / "raises.py").write_text(PLUGIN)
    done = run_command("train", *TINY, processes=2, cwd=tmp_path)
    first, second = done.ranks
    assert first.returncode == second.returncode == 1
    assert first.stderr.splitlines()[-2] == (
        f"error: rank 1 on {HOST} failed in step 2 (optimizer): ValueError: only here"
    )
    assert "Traceback" not in first.stderr
    assert second.stderr.count("Traceback (most recent call last)") == 1
    assert second.stderr.splitlines()[-3].endswith("ValueError: only here")
    assert second.stderr.splitlines()[-2:] == first.stderr.splitlines()[-2:]
