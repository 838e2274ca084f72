"""Where a run says that its wall time went: all of it, over restarts, and what was computed for nothing."""

from __future__ import annotations

import json
import math
import os
import time
from xml.etree import ElementTree

import pytest

import hekaton.trainer
from hekaton.accounting import LINE_EVERY, Accounts, add_up, goodput_by_step, read_account, resumed_at
from hekaton.cli import main
from hekaton.jsonl import build
from hekaton.testing import run_command

RUN = [
    "--model.tokenizer", "byte", "--training.mixed_precision_param", "float32",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}',
    "--training.seq_len", "16", "--training.local_batch_size", "2", "--checkpoint.enable",
    "--checkpoint.interval", "2", "--metrics.log_freq", "1", "--lr_scheduler.total_steps", "6",
]  # fmt: skip


def line(began, ended, first, step, resumed=False, **seconds):
    named = {name.replace("_", " "): spent for name, spent in seconds.items()}
    return {"began": began, "ended": ended, "from": first, "step": step, "resumed": resumed, "seconds": named}


def test_time_is_added_up_over_a_restart_and_steps_done_twice_are_lost():
    """Ten steps of 1 s, killed; 5 s later the run goes on after step 4: six of the ten are lost."""
    account = add_up(
        [
            line(0, 3, 0, 0, resumed=True, load=1, **{"start-up": 2}),
            line(3, 15, 0, 10, compute=8, optimizer=2, save=2),
            line(20, 24, 4, 4, resumed=True, load=4, **{"start-up": 0}),
            line(24, 30, 4, 10, compute=5, optimizer=1),
        ]
    )
    assert account.total == 30
    assert account.seconds == pytest.approx(
        {
            "start-up": 2, "load": 5, "down": 5, "save": 2, "lost work": 8 * 0.6 + 2 * 0.6,
            "compute": 8 * 0.4 + 5, "optimizer": 2 * 0.4 + 1,
        }
    )  # fmt: skip
    assert sum(account.seconds.values()) == pytest.approx(account.total)
    assert account.goodput == pytest.approx((8.2 + 1.8) / 30)
    assert (account.starts, account.step) == (2, 10)


def test_goodput_until_a_step_counts_what_counts_in_the_end():
    lines = [
        line(0, 10, 0, 4, resumed=False, compute=10),
        line(10, 20, 4, 8, compute=10),
        line(30, 30, 6, 6, resumed=True),
        line(30, 40, 6, 10, compute=10),
    ]
    assert goodput_by_step(lines) == [(4, 1.0), (8, 15 / 20), (6, 15 / 30), (10, 25 / 40)]
    assert resumed_at(lines) == [6]


def test_a_month_of_lines_is_added_up_in_a_moment():
    lines = [line(i, i + 1, i, i + 1, resumed=i % 100 == 0, compute=1) for i in range(60_000)]
    began = time.process_time()
    assert add_up(lines).total == 60_000
    assert time.process_time() - began < 5


def test_the_seconds_of_a_run_that_is_resumed_have_names(tmp_path, capsys):
    began = time.time()
    for steps in ("3", "5"):
        assert main(["train", *RUN, "--training.steps", steps, "--job.dump_folder", str(tmp_path)]) == 0
    took = time.time() - began
    with (tmp_path / "accounting.jsonl").open("a") as stream:
        stream.write('{"began": 1')  # cut off, as by a kill
    lines = [json.loads(one) for one in (tmp_path / "accounting.jsonl").read_text().splitlines()[:-1]]
    second = [one for one in lines if one["resumed"]][1]
    assert (second["from"], second["step"]) == (3, 3)
    account = add_up(lines)
    assert sum(account.seconds.values()) == pytest.approx(account.total, rel=1e-3)
    assert account.total > 0.9 * took  # from the start of the process that runs the tests, so it may be more
    assert {
        "start-up",
        "load",
        "data wait",
        "compile",
        "compute",
        "optimizer",
        "save",
        "end",
    } <= account.seconds.keys()
    assert account.seconds.get("lost work", 0) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path), "--svg", str(tmp_path / "run.svg")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("step 5, 2 start(s), goodput ")
    drawn = ElementTree.parse(tmp_path / "run.svg").getroot()
    texts = [one.text for one in drawn if one.tag.endswith("text")]
    assert texts[::2] == ["loss", "tokens_per_second", "goodput"]
    across = {(one.get("x1"), one.get("x2")) for one in drawn if one.tag.endswith("line") and one.get("x1")}
    assert len(across) == 2  # after step 3, in the panels of 5 steps and of goodput, which begins at 0
    curves = [one.get("points").split() for one in drawn if one.tag.endswith("polyline")]
    assert [len(points) for points in curves[:2]] == [5, 5]


def test_a_step_that_ends_in_an_error_is_not_done_and_its_time_is_lost(tmp_path, monkeypatch, capsys):
    clip, norms = hekaton.trainer.clip_grad_norm, iter([1, 1, math.nan])
    monkeypatch.setattr(hekaton.trainer, "clip_grad_norm", lambda *a, **b: clip(*a, **b) * next(norms))
    assert main(["train", *RUN, "--training.steps", "6", "--job.dump_folder", str(tmp_path)]) != 0
    assert "error: step 3: " in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 0
    assert "\nstep 2, 1 start(s)" in capsys.readouterr().out
    *_, undone = [json.loads(one) for one in (tmp_path / "accounting.jsonl").read_text().splitlines()]
    assert (undone["from"], undone["step"]) == (2, 2)
    assert undone["seconds"]["lost work"] > 0 == undone["seconds"]["compute"]


def test_of_steps_since_the_last_line_that_which_is_not_done_is_lost(tmp_path):
    accounts = Accounts(tmp_path, writes=True, since=time.time())
    accounts.enter("optimizer")
    time.sleep(0.01)
    assert accounts.end(4, OSError()) == 3
    (said,) = [json.loads(one) for one in (tmp_path / "accounting.jsonl").read_text().splitlines()]
    assert said["seconds"]["lost work"] == pytest.approx(said["seconds"]["optimizer"] / 3, rel=1e-2)


WAITS = """
import os
import signal
import time

from hekaton.config import SectionModel
from hekaton.contributions import Evaluation, Ref, Section, hookimpl


class WaitsSection(SectionModel):
    \"\"\"When it waits.\"\"\"

    step: int = 0
    \"\"\"After this one.\"\"\"


class Waits:
    def due(self, step):
        return step == 2

    def __call__(self):
        time.sleep(0.3)
        return {}


def build(section, assembled):
    return Waits()


@hookimpl
def hekaton_sections():
    return [Section("waits", schema=Ref("waits:WaitsSection"), summary="waits")]


@hookimpl
def hekaton_evaluations():
    return [Evaluation("waits", build=Ref("waits:build"), summary="waits")]


@hookimpl
def hekaton_run_started(config, step, control):
    time.sleep(0.6)


@hookimpl
def hekaton_step_ended(step, metrics, control):
    time.sleep(0.1)
    if step == 3 and "KILLED" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_seconds_of_a_run_that_is_killed_have_the_names_of_what_took_them(tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    run = [
        "train", *RUN, "--training.steps", "4", "--plugins.load", "waits.py", "--waits.step", "2",
        "--metrics.log_freq", "9", "--checkpoint.enable_first_step_checkpoint", "--job.dump_folder", "out",
        "--checkpoint.interval", "9",
    ]  # fmt: skip
    began = time.time()
    killed = run_command(*run, cwd=tmp_path, environment={**os.environ, "KILLED": "1"})
    assert (killed.returncode, run_command(*run, cwd=tmp_path).returncode) == (-9, 0), killed.stderr
    account = read_account(tmp_path / "out")
    assert (account.starts, account.step) == (2, 4)
    assert sum(account.seconds.values()) == pytest.approx(account.total, abs=1e-3)
    assert account.total <= time.time() - began
    seconds = account.seconds
    assert seconds["start-up"] > 1.2 > seconds["load"]
    assert seconds["evaluation"] > 0.6  # one of them before the kill
    assert seconds["down"] > 0.1  # the hook that killed it
    assert 0.1 < seconds["lost work"] < 0.5  # step 2, and hooks of two steps
    assert seconds["between steps"] > 0.2


def test_a_line_is_written_in_a_long_time_without_a_reason_for_one(tmp_path):
    accounts = Accounts(tmp_path, writes=True, since=time.time() - LINE_EVERY - 5)
    accounts.enter("data")
    for step in (1, 2, 3):
        accounts.keep_up(step)
    (said,) = [json.loads(one) for one in (tmp_path / "accounting.jsonl").read_text().splitlines()]
    assert said["step"] == 1
    assert said["seconds"]["start-up"] == pytest.approx(LINE_EVERY + 5, abs=1)


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "accounting.jsonl has nothing of a run" in capsys.readouterr().err


WHOLE = line(1.0, 2.0, 0, 3, compute=1.0)
FORGED = {
    **{f"{name} {value!r}": {**WHOLE, name: value} for name in WHOLE for value in (None, "x", [1], {}, 10**400)},
    "seconds of a name": {**WHOLE, "seconds": {"compute": [1]}},
    "an escape sequence": {**WHOLE, "seconds": {"\x1b]0;x\x07": 1.0}},
    "not a number": {**WHOLE, "began": float("nan")},
    "an end before the beginning": {**WHOLE, "ended": -5},
    "no object": [1],
}  # fmt: skip
ODD = {"bytes": b"\x81\xff\n", "depth": b"[" * 100_000 + b"\n", "a long line": b"1" * 3_000_000 + b"\n"}


def written(folder, name, *lines):
    (folder / name).write_bytes(
        b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in lines)
    )


@pytest.mark.parametrize("odd", [*FORGED.values(), *ODD.values()], ids=[*FORGED, *ODD])
def test_a_line_that_no_run_wrote_is_left_out(tmp_path, capsys, odd):
    written(tmp_path, "accounting.jsonl", odd, WHOLE, odd)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "step 3, 0 start(s), goodput 100.0%"
    assert Accounts(tmp_path, writes=True, since=0.0)._began == 2.0  # a run that starts after it


def test_time_that_took_none_has_no_shares(tmp_path, capsys):
    written(tmp_path, "accounting.jsonl", {**WHOLE, "ended": 1.0})
    assert main(["report", str(tmp_path)]) == 0
    assert "goodput 0.0%" in capsys.readouterr().out


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["accounting.jsonl", "metrics.jsonl"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, capsys, name):
    written(tmp_path, "accounting.jsonl", WHOLE)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert main(["report", str(tmp_path), "--svg", str(tmp_path / "run.svg")]) == 2
    assert f"{name}': it is not a regular file" in capsys.readouterr().err
    Accounts(tmp_path, writes=True, since=0.0).write(1)
    with pytest.raises(OSError, match="it is not a regular file"):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        os.mkfifo(tmp_path / "metrics.jsonl")
        build(None, tmp_path).resume(1)


@pytest.mark.parametrize(
    "odd",
    [*ODD.values(), [1], {"loss": 1}, {"step": "x", "loss": 1}]
    + [{"step": 2, "loss": value} for value in ("x", None, float("nan"), 10**400)],
)
def test_metrics_that_no_run_wrote_are_not_plotted(tmp_path, odd):
    written(tmp_path, "accounting.jsonl", WHOLE)
    written(tmp_path, "metrics.jsonl", odd, {"step": 1, "loss": 2.0, "a<b_per_second": 3}, b'{"step": 2, "lo')
    assert main(["report", str(tmp_path), "--svg", str(tmp_path / "run.svg")]) == 0
    drawn = ElementTree.parse(tmp_path / "run.svg").getroot()
    curves = [one.get("points").split() for one in drawn if one.tag.endswith("polyline")]
    assert [len(points) for points in curves] == [1, 1, 1]


def test_a_plot_that_cannot_be_written_is_an_error(tmp_path, capsys):
    written(tmp_path, "accounting.jsonl", WHOLE)
    written(tmp_path, "metrics.jsonl", {"step": 1, "loss": 2.0})
    for place in (tmp_path, tmp_path / "nowhere" / "run.svg"):
        assert main(["report", str(tmp_path), "--svg", str(place)]) == 2
        assert f"cannot write '{place}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--svg"], "--svg needs a value"),
        (["out", "--svg"], "--svg needs a value"),
        (["out", "other"], "takes a run folder"),
        (["out", "--png"], "unknown option --png"),
        (["--svg=x.svg", "out"], "out/accounting.jsonl has nothing of a run"),
    ],
)
def test_what_report_does_not_know_is_named(words, said, capsys):
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err
