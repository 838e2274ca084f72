"""Flux trains from its TOML file: the loss falls, a resumed run is the same run, and so are other layouts."""

from pathlib import Path

import pytest
import torch

import hekaton
from hekaton.testing import check_layouts

FILE = str(Path(__file__).parents[1] / "train_configs/debug_model.toml")
SMALL = {
    "model.overrides": {
        "dim": 48,
        "n_heads": 2,
        "n_double_blocks": 1,
        "n_single_blocks": 1,
        "axes": [4, 10, 10],
    },
    "flow_matching.image_size": 64,
    "training.local_batch_size": 8,
    "lr_scheduler.total_steps": 12,
    "lr_scheduler.warmup_steps": 2,
    "validation.enable": False,
    "metrics.enable_tensorboard": False,
    "metrics.log_freq": 1,
}


def train(folder, steps):
    return hekaton.train(FILE, **SMALL, **{"job.dump_folder": str(folder), "training.steps": steps})


def test_the_loss_falls_and_a_resumed_run_is_bit_identical(tmp_path):
    whole = train(tmp_path / "whole", 12)
    losses = [metrics["loss"] for metrics in whole.metrics]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert "images_per_second" in whole.metrics[0]
    train(tmp_path / "parts", 7)
    resumed = train(tmp_path / "parts", 12)
    assert [metrics["loss"] for metrics in resumed.metrics] == losses[7:]
    theirs = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert not any("encoder" in name for name in theirs)


@pytest.mark.slow
def test_layouts_compute_what_one_process_does_on_drawn_shapes():
    flags = [FILE, "--model.overrides", '{"n_double_blocks": 1, "n_single_blocks": 1}', "--flow_matching.image_size", "64",
             "--validation.enable", "false", "--checkpoint.enable", "false", "--metrics.enable_tensorboard", "false"]  # fmt: skip
    check_layouts(*flags, layouts=["shard2", "replicate2", "cp2"])
