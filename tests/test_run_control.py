"""A hook stops a run at a loss, after a save, on all ranks at the same step."""

import json
import os

import pytest

from hekaton.testing import run_command

PLUGIN = """
import os

from hekaton.contributions import hookimpl


@hookimpl
def hekaton_step_ended(step, metrics, control):
    if os.environ.get("RANK", "0") == os.environ["ASKING"] and step == 2:
        control.ask(save=True, stop=True, reason="the loss is good enough")
"""
FLAGS = [
    "--model.tokenizer", "byte",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 258}',
    "--training.steps", "9", "--training.seq_len", "16", "--training.local_batch_size", "2",
    "--training.mixed_precision_param", "float32", "--activation_checkpoint.mode", "none",
    "--checkpoint.enable", "--plugins.load", "stopper.py",
]  # fmt: skip


@pytest.mark.parametrize(("processes", "asking", "stopped_at"), [(1, 0, 2), (2, 1, 3)])
def test_a_run_stops_on_request(processes, asking, stopped_at, tmp_path):
    """On two processes one of them asks, and both act on it a step later."""
    (tmp_path / "stopper.py").write_text(PLUGIN)
    environment = {**os.environ, "ASKING": str(asking), "OMP_NUM_THREADS": "1"}
    done = run_command("train", *FLAGS, processes=processes, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert f"stopping after step {stopped_at}: the loss is good enough" in done.stderr
    steps = tmp_path / "outputs" / "checkpoint"
    assert [step.name for step in steps.iterdir() if step.is_dir()] == [f"step-{stopped_at}"]
    assert json.loads((steps / f"step-{stopped_at}" / "manifest.json").read_text())["step"] == stopped_at
