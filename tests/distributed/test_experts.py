"""Qwen 3 with experts computes on every layout what one process computes: losses, gradients, biases, counts."""

import json
from pathlib import Path

import pytest

from hekaton.testing import run_processes
from hekaton.testing.distributed import NamedLayout

HERE = Path(__file__).parent
SCRIPT = HERE / "layouts.py"
TINY = {
    "dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "vocab_size": 264,
    "moe": {
        "n_experts": 8, "top_k": 2, "hidden_dim": 16, "bias_rate": 1e-3, "sequence_balance": 1e-2,
        "batch_balance": 1e-2,
    },
}  # fmt: skip
FLAGS = [
    "--training.dtype", "float64", "--training.mixed_precision_param", "float64",
    "--training.mixed_precision_reduce", "float64", "--model.name", "qwen3", "--model.flavor", "debugmodel_moe",
    "--model.overrides", json.dumps(TINY),
]  # fmt: skip
RECOMPUTED = ["--activation_checkpoint.mode", "full"]
BY_OPERATOR = [
    "--activation_checkpoint.mode",
    "selective",
    "--activation_checkpoint.selective_ac_option",
    "op",
]
ZERO_BUBBLE = [
    "--parallelism.pipeline_parallel_schedule", "ZBVZeroBubble",
    "--parallelism.pipeline_parallel_first_stage_less_layers", "0",
    "--parallelism.pipeline_parallel_last_stage_less_layers", "0",
]  # fmt: skip
OTHER_DISPATCHER = [
    "--plugins.load", str(HERE / "toy_dispatcher.py"), "--parallelism.expert_dispatcher", "everywhere"
]  # fmt: skip
ACCUMULATED = ["--training.local_batch_size", "1"]
CASES = [
    ("tp2",),
    ("tp2", "--parallelism.no-sequence_parallel"),
    ("shard2 ep2", *ACCUMULATED),
    ("shard2 ep2", *OTHER_DISPATCHER),
    ("cp2 ep2", *BY_OPERATOR),
    ("shard4 ep2", *RECOMPUTED),
    ("shard4 ep4",),
    ("shard2 tp2 ep2",),
    ("shard2 tp2 ep2 etp2",),
    ("shard4 ep2 etp2", *ACCUMULATED),
    ("shard2 pp2 ep2",),
    ("shard2 pp2 ep2", *ZERO_BUBBLE),
    ("shard2 cp2 ep2",),
    ("replicate2 shard2 ep2",),
]


def described(layout, *flags):
    layout = NamedLayout(layout)
    rows = (
        [] if "--training.local_batch_size" in flags else ["--training.local_batch_size", str(8 // layout.dp)]
    )
    return {
        "flags": [*FLAGS, *layout.flags, *rows, *flags], "reference": "alone", "last_gradients": True,
    }  # fmt: skip


def name(case):
    return " ".join(case)


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    run_processes(
        SCRIPT, "run", processes=1, timeout=110, cases={"alone": described("shard1")}, folder=str(folder),
        reference=True,
    )  # fmt: skip
    found = {}
    for processes in (2, 4):
        cases = {
            name(case): described(*case) for case in CASES if NamedLayout(case[0]).processes == processes
        }
        run_processes(
            SCRIPT, "run", processes=processes, timeout=500, cases=cases, folder=str(folder), reference=False
        )
        found |= json.loads((folder / f"differences-{processes}.json").read_text())
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_layout_is_the_single_process(case, differences):
    """The buffers are each layer's expert bias, and its load, in which the tokens of each expert are counted."""
    got = differences[name(case)]
    assert got["weights"] == got["buffers"] == 0
    assert max(got[key] for key in ("gradients", "first_loss", "grad_norm", "last_loss")) < 1e-10, got
