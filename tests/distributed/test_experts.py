"""Models with experts compute on every layout what one process computes: the first loss and that after five steps, the
gradients of both, biases and counts."""

import json
from pathlib import Path

import pytest

from hekaton.testing import run_processes
from hekaton.testing.distributed import NamedLayout

HERE = Path(__file__).parent
SCRIPT = HERE / "layouts.py"
BALANCE = {"bias_rate": 1e-3, "sequence_balance": 1e-2, "batch_balance": 1e-2}
QWEN3 = {
    "dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "vocab_size": 264,
    "moe": {"n_experts": 8, "top_k": 2, "hidden_dim": 16, **BALANCE},
}  # fmt: skip
DEEPSEEK = {
    "dim": 32, "n_layers": 4, "n_dense_layers": 1, "n_heads": 4, "inter_dim": 48, "q_lora_rank": 12,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "vocab_size": 264,
    "moe": {
        "n_experts": 8, "top_k": 2, "hidden_dim": 16, "n_shared_experts": 1, "n_groups": 4,
        "n_limited_groups": 2, **BALANCE,
    },
}  # fmt: skip
GPT_OSS = {
    "dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "window": 5, "vocab_size": 264,
    "moe": {"n_experts": 8, "top_k": 2, "hidden_dim": 16, **BALANCE},
}  # fmt: skip
FLAGS = [
    "--training.dtype", "float64", "--training.mixed_precision_param", "float64",
    "--training.mixed_precision_reduce", "float64",
]  # fmt: skip
MODELS = {
    "qwen3": (["--model.name", "qwen3", "--model.flavor", "debugmodel_moe"], QWEN3),
    "deepseek_v3": (["--model.name", "deepseek_v3"], DEEPSEEK),
    "gpt_oss": (["--model.name", "gpt_oss"], GPT_OSS),
}
STEPS = {"qwen3": 5, "deepseek_v3": 5}
SHALLOW = {"qwen3": 2, "deepseek_v3": 3, "gpt_oss": 2}
"""Layers where there is no pipeline: two with experts, of every kind that the model has."""
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
DEEPEP = [
    "--plugins.load", str(HERE / "deep_ep_by_definition.py"),
    "--parallelism.expert_dispatcher", "deepep_by_definition",
]  # fmt: skip
COMPILED = ["--compile.enable", "--compile.backend", "aot_eager"]
ACCUMULATED = ["--training.local_batch_size", "1"]


def name(case):
    return " ".join(case)


TWO = [
    ("tp2",),
    ("tp2", "--parallelism.no-sequence_parallel"),
    ("shard2 ep2", *ACCUMULATED),
    ("shard2 ep2", *OTHER_DISPATCHER),
    ("shard2 ep2", *DEEPEP),
    ("shard2 etp2",),
    ("shard2 ep2", *COMPILED),
    ("cp2 ep2", *BY_OPERATOR),
]
# Of sinks, windows and biases.
TWO_OF_GPT_OSS = [
    ("tp2",),
    ("shard2 etp2",),
    ("cp2 ep2", "--parallelism.context_parallel_strategy", "ring"),
    ("cp2", "--parallelism.context_parallel_strategy", "ulysses"),
]
FOUR = [
    ("shard4 ep2", *RECOMPUTED),
    ("shard4 ep4",),
    ("shard2 tp2 ep2",),
    ("shard2 tp2 ep2 etp2",),
    ("shard4 ep2 etp2", *ACCUMULATED),
    ("shard2 pp2 ep2",),
    ("shard2 pp2 ep2", *ZERO_BUBBLE),
    ("shard2 cp2 ep2", *BY_OPERATOR),
    ("replicate2 shard2 ep2",),
]
# Of gpt-oss those that cut what it alone has in a way of their own.
CASES = [(model, case) for case in FOUR for model in ("qwen3", "deepseek_v3")]
CASES += [("gpt_oss", case) for case in FOUR if name(case) in ("shard2 tp2 ep2 etp2", "shard2 pp2 ep2")]

# Mistakes of public frameworks that are put back in -> the layout that each shows under, and what differs.
MISTAKES = {
    "expert gradients divided by the degree": (("shard2 ep2",), "experts"),
    "expert gradients not summed": (("tp2",), "experts"),
    "the norm misses experts of other ranks": (("shard2 ep2",), "grad_norm"),
    "the norm counts experts twice": (("shard2 ep2",), "grad_norm"),
    "expert bias updated per microbatch": (("shard2 ep2", *ACCUMULATED), "buffers"),
    "tokens counted twice under recomputation": (("shard2 ep2", *RECOMPUTED), "counts"),
    "balance of each part of a sequence": (("cp2 ep2",), "router.gate"),
    "balance averaged over ranks of unequal token counts": (("shard2 ep2",), "router.gate"),
    "uneven splits transposed": (("shard2 ep2",), "raises"),
    "parts of experts not summed": (("shard2 etp2",), "first_loss"),
    "output bias of experts multiplied by the degree": (("shard2 etp2",), "mlp2_bias"),
}
OF_GPT_OSS = {"output bias of experts multiplied by the degree"}


def described(model, layout, *flags, deep=False):
    layout = NamedLayout(layout)
    rows = (
        [] if "--training.local_batch_size" in flags else ["--training.local_batch_size", str(8 // layout.dp)]
    )
    named, sizes = MODELS[model]
    # With a block between the first and the last, FSDP gathers experts earlier in forward than in recomputation.
    deep = deep or layout.degrees["pp"] > 1 or BY_OPERATOR[-1] in flags
    overrides = sizes if deep else sizes | {"n_layers": SHALLOW[model]}
    return {
        "flags": [*FLAGS, *named, "--model.overrides", json.dumps(overrides), *layout.flags, *rows, *flags],
        "reference": reference_name(model, deep=deep), "last_gradients": True, "steps": STEPS.get(model, 3),
    }  # fmt: skip


def reference_name(model, *, deep):
    return f"{model} for pipelines" if deep else model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    cases = {
        reference_name(model, deep=deep): described(model, "shard1", deep=deep)
        for model in MODELS
        for deep in (False, True)
    }
    run_processes(SCRIPT, "run", processes=1, timeout=110, cases=cases, folder=str(folder), reference=True)
    return folder


@pytest.fixture(scope="module")
def on_two(folder):
    cases = {f"qwen3 {name(case)}": described("qwen3", *case) for case in TWO}
    cases |= {f"gpt_oss {name(case)}": described("gpt_oss", *case) for case in TWO_OF_GPT_OSS}
    return differences(folder, cases, processes=2)


@pytest.fixture(scope="module")
def on_four(folder):
    cases = {f"{model} {name(case)}": described(model, *case) for model, case in CASES}
    return differences(folder, cases, processes=4)


def differences(folder, cases, *, processes):
    run_processes(
        SCRIPT, "run", processes=processes, timeout=560, cases=cases, folder=str(folder), reference=False
    )
    return json.loads((folder / f"differences-{processes}.json").read_text())


def check(got):
    """The buffers are each layer's expert bias and load; counted are the last step's tokens of each expert."""
    assert got["weights"] == got["buffers"] == got["counts"] == got["report"] == 0
    assert max(got[key] for key in ("gradients", "first_loss", "grad_norm", "last_loss")) < 1e-10, got


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", TWO, ids=name)
def test_two_processes_compute_what_one_does(case, on_two):
    check(on_two[f"qwen3 {name(case)}"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", TWO_OF_GPT_OSS, ids=name)
def test_two_processes_compute_sinks_windows_and_biases_as_one_does(case, on_two):
    check(on_two[f"gpt_oss {name(case)}"])


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.parametrize(
    ("model", "case"), CASES, ids=lambda part: part if isinstance(part, str) else name(part)
)
def test_four_processes_compute_what_one_does(model, case, on_four):
    check(on_four[f"{model} {name(case)}"])


@pytest.fixture(scope="module")
def with_mistakes(folder):
    cases = {
        mistake: described("gpt_oss" if mistake in OF_GPT_OSS else "qwen3", *layout) | {"mistake": mistake}
        for mistake, (layout, seen) in MISTAKES.items()
        if seen != "raises"
    }
    return differences(folder, cases, processes=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake, with_mistakes, folder):
    layout, seen = MISTAKES[mistake]
    if seen == "raises":
        with pytest.raises(AssertionError, match=f"layout {mistake}"):
            differences(folder, {mistake: described("qwen3", *layout) | {"mistake": mistake}}, processes=2)
        return
    got = with_mistakes[mistake]
    if seen in got:
        assert got[seen] > 1e-10
    else:
        assert got["gradients"] > 1e-10
        assert any(seen in name for name in got["differing"][:4])
