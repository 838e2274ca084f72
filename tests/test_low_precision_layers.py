"""Linear layers in the recipes whose products are of whole blocks: recomputation, compile and layouts."""

import json

import pytest
import torch

from hekaton.testing import check_layouts
from hekaton.testing.steps import train_steps

FLOAT8, MX = "quantize.linear.float8", "quantize.linear.mx"
SIZES = {"dim": 256, "n_layers": 1, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 256, "vocab_size": 258}
RUN = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", json.dumps(SIZES),
    "--model.tokenizer", "byte", "--training.seq_len", "64", "--lr_scheduler.warmup_steps", "0",
]  # fmt: skip
RECIPES = {
    recipe: ["--model.converters", converter, f"--{converter}.recipe_name", recipe, f"--{converter}.filter_fqns", "output"]
    for converter, recipe in (
        (FLOAT8, "blockwise"), (FLOAT8, "rowwise_with_gw_hp"), (MX, "mxfp8_rceil_wgrad_with_hp"), (MX, "nvfp4"),
    )
}  # fmt: skip


@pytest.mark.slow
def test_recomputation_and_compile_compute_the_same(tmp_path):
    """The noise of NVFP4's gradients is drawn in backward alone, so that it is the same too."""
    batch = ["--training.global_batch_size", "2", "--training.local_batch_size", "2"]
    compiled = ["--compile.enable", "--compile.backend", "aot_eager"]
    ways = {
        "eager": [],
        "recomputed": ["--activation_checkpoint.mode", "full"],
        "compiled, recomputed by operator": [*compiled, "--activation_checkpoint.mode", "selective"],
    }
    runs = {
        f"{recipe} {way}": [
            *RUN, *batch, "--training.mixed_precision_param", "float32", *flags, *options,
        ]
        for recipe, flags in RECIPES.items()
        for way, options in ways.items()
    }  # fmt: skip
    numbers = train_steps(runs, processes=1, steps=1, folder=tmp_path, timeout=100)
    for recipe in RECIPES:
        expected = torch.tensor(numbers[f"{recipe} eager"])
        for way in ways:
            torch.testing.assert_close(
                torch.tensor(numbers[f"{recipe} {way}"]), expected, rtol=1e-5, atol=0, msg=f"{recipe} {way}"
            )


@pytest.mark.slow
def test_gradients_of_weights_in_their_own_precision_are_the_same_on_every_layout():
    for recipe in ("rowwise_with_gw_hp", "mxfp8_rceil_wgrad_with_hp"):
        check_layouts(
            *RUN, *RECIPES[recipe], layouts=["shard2", "cp2", "tp2"], rows=2, steps=2, tolerance=1e-6
        )


@pytest.mark.slow
def test_ranks_compute_in_nvfp4_what_one_process_does_as_far_as_its_noise_goes():
    layouts = ["shard2", "cp2", "tp2"]
    check_layouts(*RUN, *RECIPES["nvfp4"], layouts=layouts, rows=2, steps=2, tolerance=1e-3)
