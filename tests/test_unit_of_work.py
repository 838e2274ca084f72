"""The row maker says what work is counted in; speed and floating-point operations follow."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hekaton.testing import run_command
from hekaton_llama3.spec import train_spec

SEQ_LEN, ROWS = 32, 4
SIZES = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 48}
CONFIG = replace(train_spec.flavors["debugmodel"], **SIZES)
PLUGIN = """
import json
from hekaton.contributions import Ref, RowMaker, hookimpl
from hekaton.data.row_makers import InOrder


class Images(InOrder):
    unit = "images"
    units_per_row = 1


def build(section, seq_len):
    return Images(seq_len)


@hookimpl
def hekaton_row_makers():
    return [RowMaker("one_image", build=Ref("printed:build"), summary="a row is an image")]


@hookimpl
def hekaton_step_ended(step, metrics):
    if metrics:
        print(json.dumps(dict(metrics)), flush=True)
"""


def test_a_row_maker_that_counts_images_sets_the_unit_of_speed_and_operations(tmp_path: Path) -> None:
    plugin = tmp_path / "printed.py"
    plugin.write_text(PLUGIN)
    done = run_command(
        "train", "--plugins.load", str(plugin), "--model.name", "llama3", "--model.flavor", "debugmodel",
        "--model.tokenizer", "byte", "--training.dataset", "python_stdlib", "--training.steps", "2",
        "--training.seq_len", str(SEQ_LEN), "--training.local_batch_size", str(ROWS),
        "--training.packing", "one_image", "--metrics.log_freq", "1", "--model.overrides", json.dumps(SIZES),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(steps) == 2
    for metrics in steps:
        assert "tokens_per_second" not in metrics
        assert metrics["images_per_second"] == pytest.approx(ROWS / metrics["step_seconds"])
        flops = train_spec.flops_per_unit(CONFIG, SEQ_LEN)
        assert metrics["tflops"] == pytest.approx(metrics["images_per_second"] * flops / 1e12)
    assert "images/s" in done.stderr
