"""Where a run says that its wall time went: all of it, over restarts, and what was computed for nothing."""

from __future__ import annotations

import json
import time
from xml.etree import ElementTree

import pytest

from hekaton.accounting import add_up
from hekaton.cli import main

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
    assert texts[::2] == ["loss", "tokens_per_second"]
    curves = [one.get("points").split() for one in drawn if one.tag.endswith("polyline")]
    assert [len(points) for points in curves] == [5, 5]


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "accounting.jsonl has nothing of a run" in capsys.readouterr().err
