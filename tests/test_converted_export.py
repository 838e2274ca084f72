"""What a converter adds is merged by an export, and starts anew beside weights that come from elsewhere."""

from pathlib import Path

import pytest
import torch

from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.cli import main

TOYS = Path(__file__).parent / "distributed" / "toys.py"
FLAGS = [
    "--plugins.load", str(TOYS), "--model.converters", "adapt_values", "--model.tokenizer", "byte",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 258}',
    "--training.steps", "2", "--training.seq_len", "16", "--training.local_batch_size", "2",
    "--training.mixed_precision_param", "float32", "--lr_scheduler.warmup_steps", "0", "--checkpoint.enable",
]  # fmt: skip
VALUES = "layers.1.attention.wv"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The step of a run with adapters, and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("exported")
    assert main(["train", *FLAGS, "--job.dump_folder", str(folder / "run")]) == 0
    step = folder / "run" / "checkpoint" / "step-2"
    assert main(["convert", "to-hf", str(step), str(folder / "hf"), "--plugins.load", str(TOYS)]) == 0
    return step, folder / "hf"


def read(step):
    return {name: tensor.read() for name, tensor in open_model(step).tensors.items()}


def published(folder):
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    return load_file(file)["model.layers.1.self_attn.v_proj.weight"]


def test_an_export_merges(exported):
    step, folder = exported
    ours = read(step)
    base, a, b = (ours[f"{VALUES}.{part}.weight"] for part in ("base", "a", "b"))
    assert torch.equal(published(folder), base + 0.5 * (b @ a))


def test_only_the_adapters_were_trained(exported, tmp_path):
    step, _ = exported
    seed = ["--checkpoint.create_seed_checkpoint", "--job.dump_folder", str(tmp_path)]
    assert main(["train", *FLAGS, *seed]) == 0
    before, after = read(tmp_path / "checkpoint" / "step-0"), read(step)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {f"layers.{i}.attention.wv.{part}.weight" for i in range(2) for part in "ab"}


def test_weights_from_elsewhere_fill_the_frozen_model(exported, tmp_path):
    _, folder = exported
    start = ["--checkpoint.initial_load_path", str(folder), "--checkpoint.initial_load_in_hf"]
    flags = [*FLAGS, *start, "--training.steps", "1", "--job.dump_folder", str(tmp_path)]
    assert main(["train", *flags]) == 0
    assert torch.equal(read(tmp_path / "checkpoint" / "step-1")[f"{VALUES}.base.weight"], published(folder))
