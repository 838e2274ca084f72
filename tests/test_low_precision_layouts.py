"""Recipes of each converter on layouts, with recomputation and compiled, against one process that has none of these."""

import functools
import json
from dataclasses import dataclass

import pytest

from hekaton.testing.distributed import NamedLayout
from hekaton.testing.steps import train_steps

FLOAT8, MX = "quantize.linear.float8", "quantize.linear.mx"
EXPERTS_FLOAT8, EXPERTS_MX = "quantize.grouped_mm.float8", "quantize.grouped_mm.mx"
SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 64, "vocab_size": 258}
WIDE = {"dim": 256, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 256, "vocab_size": 258}
EXPERTS = SIZES | {
    "dim": 64, "head_dim": 16, "hidden_dim": 128, "moe": {"n_experts": 4, "top_k": 2, "hidden_dim": 64},
}  # fmt: skip
COMPILED = "compiled, recomputed by operator"
WAYS = {
    "recomputed": ["--activation_checkpoint.mode", "full"],
    COMPILED: ["--compile.enable", "--compile.backend", "aot_eager", "--activation_checkpoint.mode", "selective"],
}  # fmt: skip
ONE_LAYER = ["--model.overrides.n_layers", "1"]
ROWS = 2


def llama3(sizes, seq_len=16):
    return [
        "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", json.dumps(sizes),
        "--training.seq_len", str(seq_len),
    ]  # fmt: skip


def layers(converter, recipe):
    return [
        "--model.converters",
        converter,
        f"--{converter}.recipe_name",
        recipe,
        f"--{converter}.filter_fqns",
        "output",
    ]


def experts(grouped, linear, recipe):
    """Experts and linear layers in one format."""
    return [
        "--model.name", "qwen3", "--model.flavor", "debugmodel_moe", "--model.overrides", json.dumps(EXPERTS),
        "--training.seq_len", "16", "--model.converters", f"{grouped},{linear}",
        f"--{linear}.recipe_name", recipe, f"--{linear}.filter_fqns", "output,router",
    ]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A run, and what it is compared on.

    :param layouts: short name -> the largest relative difference of losses and gradient norms.
    """

    run: list[str]
    layouts: dict[str, float]
    ways: tuple[str, ...] = tuple(WAYS)


def within(tolerance, *layouts):
    return dict.fromkeys(layouts, tolerance)


EVERY = ("shard2", "replicate2", "cp2", "tp2", "pp2", "shard2 ep2", "tp2 ep2", "tp2 etp2")
CASES = {
    "layers": {
        # The scales of inputs are those of a rank's part of the batch, but under tp: they and the rounding differ.
        "tensorwise": Case(
            [*llama3(SIZES), *layers(FLOAT8, "tensorwise"), f"--{FLOAT8}.enable_fsdp_float8_all_gather",
             f"--{FLOAT8}.precompute_float8_dynamic_scale_for_fsdp"],
            within(1e-6, "tp2") | within(1e-2, "shard2", "replicate2", "cp2", "pp2"),
        ),
        # Sequences of 128 tokens are whole blocks, of which a context-parallel rank would have a part.
        "blockwise": Case(
            [*llama3(WIDE, 128), *layers(FLOAT8, "blockwise")], within(1e-6, "shard2", "replicate2", "tp2", "pp2")
        ),
        "rowwise_with_gw_hp": Case(
            [*llama3(SIZES), *layers(FLOAT8, "rowwise_with_gw_hp")], within(1e-6, "shard2", "cp2", "tp2"), ()
        ),
        "mxfp8_rceil_wgrad_with_hp": Case(
            [*llama3(WIDE), *layers(MX, "mxfp8_rceil_wgrad_with_hp")], within(1e-6, "shard2", "cp2", "tp2"), ()
        ),
        # The noise of gradients is drawn in backward alone: recomputation has the same.
        "nvfp4": Case(
            [*llama3(WIDE, 64), *layers(MX, "nvfp4")], within(1e-3, "shard2", "cp2", "tp2"), ("recomputed",)
        ),
    },
    # Scales are powers of 2: those of a part round as those of the whole do.
    "experts": {
        "rowwise": Case(experts(EXPERTS_FLOAT8, FLOAT8, "rowwise"), within(1e-6, *EVERY)),
        "mxfp8": Case(experts(EXPERTS_MX, MX, "mxfp8_rceil"), within(1e-6, *EVERY)),
    },
}  # fmt: skip


@functools.cache
def numbers(kind, processes, folder):
    """Name and layout or way -> losses and gradient norms in float64."""
    runs = {}
    for name, case in CASES[kind].items():
        whole = [*case.run, "--training.local_batch_size", str(ROWS)]
        variants = {"": whole, "of one layer": [*whole, *ONE_LAYER]}
        variants |= {way: [*whole, *ONE_LAYER, *WAYS[way]] for way in case.ways}
        if processes > 1:
            named = [NamedLayout(layout) for layout in case.layouts]
            variants = {
                one.name: [*case.run, *one.flags, "--training.local_batch_size", str(ROWS // one.dp)]
                for one in named
            }
        for variant, flags in variants.items():
            runs[f"{name} {variant}"] = [
                *flags, "--model.tokenizer", "byte", "--lr_scheduler.warmup_steps", "0",
                "--training.global_batch_size", str(ROWS), "--training.dtype", "float64",
                "--training.mixed_precision_param", "float64", "--training.mixed_precision_reduce", "float64",
            ]  # fmt: skip
    return train_steps(runs, processes=processes, steps=1, folder=folder, timeout=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def compare(got, expected, tolerances, plain=""):
    """Each variant of each recipe with the plain run; all that differ are named."""
    wrong = [
        f"{name} {variant}: {got[f'{name} {variant}']}, expected {expected[f'{name} {plain}']}"
        for name, variants in tolerances.items()
        for variant, tolerance in variants.items()
        if got[f"{name} {variant}"]
        != [pytest.approx(step, rel=tolerance, abs=0) for step in expected[f"{name} {plain}"]]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_recomputation_and_compile_compute_the_same(kind, folder):
    found = numbers(kind, 1, folder)
    tolerances = {name: within(1e-5, *case.ways) for name, case in CASES[kind].items()}
    compare(found, found, tolerances, plain="of one layer")


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_layouts_compute_what_one_process_does(kind, folder):
    tolerances = {name: case.layouts for name, case in CASES[kind].items()}
    compare(numbers(kind, 2, folder), numbers(kind, 1, folder), tolerances)
