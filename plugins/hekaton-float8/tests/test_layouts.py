"""What ranks gather in float8 is what they would cast after a gather in the precision of the run, bit for bit."""

import json
from pathlib import Path

import pytest
import torch

from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.testing import run_command, run_processes
from hekaton.testing.distributed import NamedLayout
from hekaton.testing.steps import train_steps
from hekaton_float8 import LINEAR

SIZES = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 64, "vocab_size": 258}
RUN = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", json.dumps(SIZES),
    "--model.tokenizer", "byte", "--training.seq_len", "16", "--lr_scheduler.warmup_steps", "0",
    "--optimizer.lr", "1e-2", "--training.global_batch_size", "4", "--training.mixed_precision_param", "float32",
    "--model.converters", LINEAR, f"--{LINEAR}.filter_fqns", "output",
]  # fmt: skip
GATHER = [f"--{LINEAR}.enable_fsdp_float8_all_gather"]
AHEAD = [*GATHER, f"--{LINEAR}.precompute_float8_dynamic_scale_for_fsdp"]
SCRIPT = Path(__file__).with_name("all_gather_on_processes.py")


@pytest.mark.slow
def test_what_is_gathered_in_float8_is_what_would_be_cast_after_a_gather():
    """Weights, inputs and gradients; with scales of each rank's own part it is not."""
    run_processes(SCRIPT, "gather", processes=4, timeout=110)


@pytest.mark.slow
def test_runs_that_gather_weights_in_float8_compute_what_those_do_that_cast_them_after_a_gather(tmp_path):
    runs = {}
    for name in ("replicate2 shard2", "shard2 tp2"):
        layout = NamedLayout(name)
        flags = [*RUN, *layout.flags, "--training.local_batch_size", str(4 // layout.dp)]
        runs |= {f"{name}, cast after": flags, f"{name}, scales ahead": [*flags, *AHEAD]}
    runs["replicate2 shard2, scales at the gather"] = [*runs["replicate2 shard2, cast after"], *GATHER]
    numbers = train_steps(runs, processes=4, steps=2, folder=tmp_path, timeout=110)
    for name, found in numbers.items():
        assert found == numbers[f"{name.partition(',')[0]}, cast after"], name


@pytest.mark.slow
def test_checkpoints_of_runs_that_gather_in_float8_are_of_the_plain_model(tmp_path):
    """Loaded without the converter, on one process, and the other way round."""
    plain = RUN[:-4]
    saved = [
        *plain,
        "--training.local_batch_size",
        "2",
        "--lr_scheduler.total_steps",
        "9",
        "--checkpoint.enable",
    ]
    for step, (processes, converted) in enumerate(
        ((2, [*RUN[-4:], *AHEAD]), (1, []), (2, [*RUN[-4:], *GATHER])), 1
    ):
        done = run_command(
            "train", *saved, *converted, "--training.steps", str(step), processes=processes, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert step == 1 or f"resumed at step {step - 1}" in done.stderr
    tensors = open_model(tmp_path / "outputs" / "checkpoint" / "step-3").tensors
    assert {(type(one), one.dtype) for one in (tensor.read() for tensor in tensors.values())} == {
        (torch.Tensor, torch.float32)
    }
