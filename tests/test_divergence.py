"""A run whose numbers are no longer finite says so once, at the first such step, and ends with an error."""

from __future__ import annotations

import math

import pytest
import torch

from hekaton import finiteness
from hekaton.cli import main
from hekaton.finiteness import FiniteWatch

TINY = [
    "--model.tokenizer", "byte", "--training.mixed_precision_param", "float32",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}',
    "--training.seq_len", "16", "--training.local_batch_size", "2", "--lr_scheduler.warmup_steps", "0",
]  # fmt: skip
WARNING = "the gradient norm is not finite"

# A schedule that is right for two steps and then makes weights infinite: NaN from the fourth step on.
PLUGIN = """
from hekaton.contributions import LRSchedule, Ref, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_lr_schedules():
    return [LRSchedule("explodes", build=Ref("explodes:build"))]


def build(section, settings, steps):
    return lambda done: 1.0 if done < 2 else 1e38
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "explodes.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def train(tmp_path, monkeypatch, capsys, plugin):
    monkeypatch.chdir(tmp_path)

    def train(*flags: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        status = main(["train", *TINY, "--plugins.load", str(plugin), *flags])
        return status, capsys.readouterr().err.splitlines()

    return train


def test_a_run_that_diverges_ends_with_an_error(train):
    flags = ["--lr_scheduler.name", "explodes", "--optimizer.lr", "10", "--optimizer.weight_decay", "0"]
    status, lines = train(*flags, "--training.steps", "8", "--metrics.log_freq", "5")
    assert status == 2
    (warning,) = [line for line in lines if WARNING in line]
    assert "WARNING: step 4: " in warning
    shown = [index for index, line in enumerate(lines) if "  step " in line]
    # Numbers are read at steps 1, 5 and 8: the warning follows those of step 5.
    assert lines.index(warning) == shown[1] + 1
    assert "error: the run ended at step 8 with weights that are not finite" in lines
    assert not any("Traceback" in line for line in lines)


def test_a_run_that_does_not_diverge_logs_no_warning(train):
    status, lines = train("--training.steps", "2")
    assert status == 0
    assert not any(WARNING in line for line in lines)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_diverging_step_is_reported_once(monkeypatch, bad):
    said = []
    monkeypatch.setattr(finiteness.log, "warning", lambda form, *words: said.append(form % words))
    watch, other_rank = (FiniteWatch(torch.device("cpu"), rank=rank) for rank in range(2))
    for step, norm in enumerate([1.0, bad, 2.0, bad], start=1):
        for each in (watch, other_rank):
            each.note(step, torch.tensor(norm))
            if step != 2:
                each.report()
    (warning,) = said
    assert warning.startswith("WARNING: step 2: the gradient norm is not finite")
