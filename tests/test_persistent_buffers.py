"""Persistent buffers are part of the model: saved, loaded under another layout, exported, and imported."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.cli import main
from hekaton.testing import run_command

TOYS = Path(__file__).parent / "distributed" / "toys.py"
SIZES = {"dim": 16, "n_layers": 4, "n_heads": 2, "n_kv_heads": 2, "hidden_dim": 24}
FLAGS = [
    "--plugins.load", str(TOYS), "--model.name", "denoiser", "--model.flavor", "debugmodel",
    "--model.tokenizer", "byte", "--model.overrides", json.dumps(SIZES), "--training.steps", "4",
    "--training.seq_len", "16", "--training.global_batch_size", "4", "--training.dtype", "float64",
    "--training.mixed_precision_param", "float64", "--training.mixed_precision_reduce", "float64",
    "--lr_scheduler.warmup_steps", "0", "--optimizer.lr", "1e-2", "--checkpoint.enable", "--checkpoint.interval", "2",
]  # fmt: skip
ALONE = ["--training.local_batch_size", "4"]
BIASES = [f"layers.{i}.router.bias" for i in range(4)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoints of a run on one process, in which every router's bias has moved."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *FLAGS, *ALONE, "--job.dump_folder", str(folder)]) == 0
    return folder / "checkpoint"


def read(step):
    return {name: tensor.read() for name, tensor in open_model(step).tensors.items()}


def test_persistent_buffers_are_saved(trained):
    after_two, after_four = read(trained / "step-2"), read(trained / "step-4")
    for name in BIASES:
        assert after_two[name].any()
        assert not torch.equal(after_two[name], after_four[name])
    assert not any("counts" in name for name in after_four)  # not persistent


@pytest.mark.parametrize("axis", ["data_parallel_shard", "pipeline_parallel"])
def test_persistent_buffers_are_loaded_under_another_layout(axis, trained, tmp_path):
    shutil.copytree(trained / "step-2", tmp_path / "checkpoint" / "step-2")
    rows = "2" if axis == "data_parallel_shard" else "4"
    flags = [f"--parallelism.{axis}_degree", "2", "--training.local_batch_size", rows]
    done = run_command("train", *FLAGS, *flags, "--job.dump_folder", str(tmp_path), processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    resumed, expected = read(tmp_path / "checkpoint" / "step-4"), read(trained / "step-4")
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in BIASES)
    torch.testing.assert_close(resumed, expected, rtol=1e-10, atol=1e-12)


def test_persistent_buffers_are_exported_and_imported(trained, tmp_path):
    from safetensors.torch import load_file, save_file

    plugin = ["--plugins.load", str(TOYS)]
    assert main(["convert", "to-torch", str(trained / "step-4"), str(tmp_path / "all.pt")]) == 0
    assert main(["convert", "to-hf", str(trained / "step-4"), str(tmp_path / "hf"), *plugin]) == 0
    by_torch = torch.load(tmp_path / "all.pt", weights_only=True)
    by_name = load_file(tmp_path / "hf" / "model.safetensors")
    expected = read(trained / "step-4")
    for i, name in enumerate(BIASES):
        assert torch.equal(by_torch[name], expected[name])
        assert torch.equal(by_name[f"blocks.{i}.router.bias"], expected[name])
    # What a step adds to a bias is less than 1.
    far = {name: tensor + 100.0 if "router" in name else tensor for name, tensor in by_name.items()}
    save_file(far, tmp_path / "hf" / "model.safetensors")
    start = ["--checkpoint.initial_load_path", str(tmp_path / "hf"), "--checkpoint.initial_load_in_hf"]
    one = ["--training.steps", "1", "--job.dump_folder", str(tmp_path / "run")]
    assert main(["train", *FLAGS, *ALONE, *start, *one]) == 0
    imported = read(tmp_path / "run" / "checkpoint" / "step-1")
    for name in BIASES:
        assert (imported[name] - expected[name] - 100.0).abs().max() < 1.0
