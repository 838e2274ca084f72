"""The row maker says what work is counted in; speed and floating-point operations follow."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hekaton.testing import run_processes
from hekaton_llama3.spec import train_spec

SEQ_LEN, ROWS = 32, 4
SIZES = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 48}
CONFIG = replace(train_spec.flavors["debugmodel"], **SIZES)
PLUGIN = """
import json
from hekaton.contributions import hookimpl


@hookimpl
def hekaton_step_ended(step, metrics):
    if metrics:
        print(json.dumps(dict(metrics)), flush=True)
"""


def train_on_images(plugin: str) -> None:
    """A run whose row maker counts each row as an image."""
    from hekaton import trainer
    from hekaton.__main__ import main
    from hekaton.data.rows import Stream

    class Images(Stream):
        unit = "images"
        units_per_row = 1

    built = trainer.run_loader

    def images(*arguments, **settings):
        loader = built(*arguments, **settings)
        stream = Images(**vars(loader._stream))
        return type(loader)(
            stream, loader.rows, num_workers=0, pin_memory=False, prefetch_factor=None, anything_left=bool
        )

    trainer.run_loader = images
    status = main([
        "train", "--plugins.load", plugin, "--model.name", "llama3", "--model.flavor", "debugmodel",
        "--model.tokenizer", "byte", "--training.dataset", "python_stdlib", "--training.steps", "2",
        "--training.seq_len", str(SEQ_LEN), "--training.local_batch_size", str(ROWS), "--metrics.log_freq", "1",
        "--model.overrides", json.dumps(SIZES),
    ])  # fmt: skip
    assert status == 0


def test_a_row_maker_that_counts_images_sets_the_unit_of_speed_and_operations(tmp_path: Path) -> None:
    plugin = tmp_path / "printed.py"
    plugin.write_text(PLUGIN)
    (done,) = run_processes(__file__, "train_on_images", processes=1, cwd=tmp_path, plugin=str(plugin))
    steps = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(steps) == 2
    for metrics in steps:
        assert "tokens_per_second" not in metrics
        assert metrics["images_per_second"] == pytest.approx(ROWS / metrics["step_seconds"])
        flops = train_spec.flops_per_unit(CONFIG, SEQ_LEN)
        assert metrics["tflops"] == pytest.approx(metrics["images_per_second"] * flops / 1e12)
    assert "images/s" in done.stderr
