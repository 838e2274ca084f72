"""A run whose numbers are no longer finite ends with an error, before or after the optimizer uses them."""

from __future__ import annotations

import pytest

from hekaton.cli import main

TINY = [
    "--model.tokenizer", "byte", "--training.mixed_precision_param", "float32",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}',
    "--training.seq_len", "16", "--training.local_batch_size", "2", "--lr_scheduler.warmup_steps", "0",
]  # fmt: skip
NOT_FINITE = "the gradient norm is not finite (NaN or infinite)"

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


EXPLODES = ["--lr_scheduler.name", "explodes", "--optimizer.lr", "10", "--optimizer.weight_decay", "0"]


def test_a_run_that_diverges_ends_before_its_gradients_reach_the_optimizer(train):
    status, lines = train(*EXPLODES, "--training.steps", "8")
    assert status == 2
    assert f"error: step 4: {NOT_FINITE}; no weight was changed by it" in lines
    assert not any("Traceback" in line for line in lines)


def test_a_run_that_ends_with_weights_that_are_not_finite_is_an_error(train):
    status, lines = train(*EXPLODES, "--training.steps", "3")
    assert status == 2
    assert "error: the run ended at step 3 with weights that are not finite" in lines


def test_a_run_that_does_not_diverge_logs_no_warning(train):
    status, lines = train("--training.steps", "2")
    assert status == 0
    assert not any("not finite" in line for line in lines)
