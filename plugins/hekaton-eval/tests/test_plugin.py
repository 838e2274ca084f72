"""The plugin says what it needs where that is not there."""

from __future__ import annotations

import pytest

from hekaton.cli import main
from hekaton.testing import check_requirement

TASKS = "--evaluation.tasks"
RUN = ["--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte"]


def test_without_the_harness_it_is_unavailable_and_says_why():
    check_requirement(
        "lm-eval>=0.4.13", too_old="0.4.5", without=RUN, using=[*RUN, TASKS, '[{"tasks": ["a"]}]']
    )


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ('[{"every": 10}]', "entry 1 of [[evaluation.tasks]] names no tasks"),
        ('[{"tasks": ["nowhere.yaml"]}]', "there is no task file 'nowhere.yaml'"),
        ('[{"tasks": ["a"], "evry": 10}]', "evry"),
    ],
)
def test_entries_that_cannot_be_carried_out(entries, said, capsys):
    pytest.importorskip("lm_eval")
    assert main(["config", "check", *RUN, TASKS, entries]) == 2
    assert said in capsys.readouterr().err


def test_settings_without_tasks_have_no_effect(capsys):
    assert main(["config", "check", *RUN, "--evaluation.batch_size", "4"]) == 0
    assert "[evaluation] has no effect" in capsys.readouterr().out
