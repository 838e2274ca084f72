"""Weights that are gathered in float8, and layouts against a single process."""

import json
from pathlib import Path

import pytest

from hekaton.testing import check_layouts, run_processes
from hekaton_float8 import LINEAR

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 64, "vocab_size": 258}
RUN = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", json.dumps(SIZES),
    "--model.tokenizer", "byte", "--training.seq_len", "16", "--lr_scheduler.warmup_steps", "0",
    "--model.converters", LINEAR, f"--{LINEAR}.filter_fqns", "output",
]  # fmt: skip
GATHER = [f"--{LINEAR}.enable_fsdp_float8_all_gather", f"--{LINEAR}.precompute_float8_dynamic_scale_for_fsdp"]
SCRIPT = Path(__file__).with_name("all_gather_on_processes.py")


@pytest.mark.slow
def test_weights_gathered_in_float8_are_those_cast_after_a_gather():
    """Bit for bit, with scales computed at the gather and after the step before."""
    run_processes(SCRIPT, "gather", processes=2, timeout=110)


@pytest.mark.slow
def test_scales_of_each_ranks_own_part_are_noticed():
    with pytest.raises(AssertionError, match=r"gathered\._"):
        run_processes(SCRIPT, "gather", processes=2, own_scale=True, timeout=110)


@pytest.mark.slow
def test_what_tensor_parallel_ranks_gather_is_cast_with_the_scale_of_the_whole():
    run_processes(SCRIPT, "cast_before_a_gather", processes=2, timeout=110)
    with pytest.raises(AssertionError, match=r"gathered\._scale"):
        run_processes(SCRIPT, "cast_before_a_gather", processes=2, own_scale=True, timeout=110)


@pytest.mark.slow
def test_tensor_parallel_ranks_compute_what_one_process_does():
    """With inputs and gradients that are gathered in float8, on parts of the sequence and without."""
    check_layouts(*RUN, layouts=["tp2"], rows=2, steps=2, tolerance=1e-6)


@pytest.mark.slow
def test_ranks_that_gather_in_float8_compute_what_one_process_does_as_far_as_float8_goes():
    """The scales of inputs are those of a rank's part of the batch: they and the rounding differ."""
    layouts = ["shard2", "replicate2", "cp2", "pp2"]
    check_layouts(*RUN, *GATHER, layouts=layouts, rows=2, steps=2, tolerance=1e-2)


@pytest.mark.slow
def test_ranks_that_have_whole_blocks_compute_blockwise_what_one_process_does():
    """Sequences of 128 tokens, which a context-parallel rank would have a part of."""
    sizes = {"dim": 256, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 256, "vocab_size": 258}
    changed = ["--model.overrides", json.dumps(sizes), "--training.seq_len", "128"]
    blockwise = [f"--{LINEAR}.recipe_name", "blockwise"]
    layouts = ["shard2", "replicate2", "tp2", "pp2"]
    check_layouts(*RUN, *changed, *blockwise, layouts=layouts, rows=2, steps=2, tolerance=1e-6)
