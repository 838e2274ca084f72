"""Saved under any layout, loaded under any other: every bit of weights and optimizer state is the same.

One process loads what every layout saved, and every layout loads what one process saved and what others did: those
that come after it in the list, around its end; of experts the layouts that differ in them alone load each other.
"""

import json
from pathlib import Path

import pytest

from hekaton.testing.distributed import run_processes

SCRIPT = Path(__file__).with_name("resharding_on_processes.py")


def degrees(**degrees: int) -> list[str]:
    return [word for name, degree in degrees.items() for word in (f"--parallelism.{name}", str(degree))]


EP, ETP = "expert_parallel_degree", "expert_tensor_parallel_degree"
SHARD, REPLICATE, TP, PP = (
    "data_parallel_shard_degree",
    "data_parallel_replicate_degree",
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
)
LAYOUTS = {
    "fsdp": degrees(**{SHARD: 4}),
    "hsdp": degrees(**{REPLICATE: 2, SHARD: 2}),
    "tp": degrees(**{TP: 4, SHARD: 1}),
    "pp": degrees(**{PP: 2, REPLICATE: 2, SHARD: 1}),
    "fsdp-tp": degrees(**{SHARD: 2, TP: 2}),
    "pp-fsdp": degrees(**{PP: 2, SHARD: 2}),
}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_under_any_layout_loaded_under_any_other(tmp_path: Path, tied: bool) -> None:
    tie = ["--model.flavor", "debugmodel_tied"] if tied else []
    # A pipeline does not take a parameter that two stages share.
    layouts = {name: [*tie, *flags] for name, flags in LAYOUTS.items() if not (tied and "pp" in name)}
    save_and_load(tmp_path, tie, layouts, following(list(layouts)))


# Hidden dims and numbers of experts for which a part of them is sharded evenly and unevenly.
EXPERTS = {
    "dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "vocab_size": 262,
    "moe": {"n_experts": 12, "top_k": 2, "hidden_dim": 20, "bias_rate": 1e-3, "batch_balance": 1e-3},
}  # fmt: skip
EXPERT_LAYOUTS = {
    "fsdp": degrees(**{SHARD: 4}),
    "ep2": degrees(**{SHARD: 4, EP: 2}),
    "ep4": degrees(**{SHARD: 4, EP: 4}),
    "ep2-etp2": degrees(**{SHARD: 4, EP: 2, ETP: 2}),
    "tp-ep2": degrees(**{SHARD: 2, TP: 2, EP: 2}),
    "hsdp-ep2": degrees(**{REPLICATE: 2, SHARD: 2, EP: 2}),
    "pp-etp2": degrees(**{PP: 2, SHARD: 2, ETP: 2}),
}


# Of layers of which only some have experts, with a shared one; and of experts' biases and sinks.
OTHERS = {
    "llama4": EXPERTS | {"n_layers": 4, "hidden_dim": 36, "interleave_moe_layer_step": 2},
    "gpt_oss": EXPERTS | {"window": 5},
}
SOME = ("ep2", "ep4", "ep2-etp2")
OF_EXPERTS = ("fsdp", *SOME)
"""Layouts that differ in how they cut experts alone: each loads what every other saved."""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ["qwen3", *OTHERS])
def test_experts_saved_under_any_layout_are_loaded_under_any_other(name: str, tmp_path: Path) -> None:
    model = ["--model.name", name, "--model.overrides", json.dumps(OTHERS.get(name, EXPERTS))]
    model += ["--model.flavor", "debugmodel_moe"] if name == "qwen3" else []
    layouts = {one: EXPERT_LAYOUTS[one] for one in SOME} if name in OTHERS else EXPERT_LAYOUTS
    sources = following(list(layouts))
    if name == "qwen3":
        sources |= {one: ["single", *(other for other in OF_EXPERTS if other != one)] for one in OF_EXPERTS}
    save_and_load(tmp_path, model, {one: [*model, *flags] for one, flags in layouts.items()}, sources)


def following(names: list[str]) -> dict[str, list[str]]:
    """For each of the layouts, what it loads: one process's, and that of the one after it."""
    return {name: ["single", names[(at + 1) % len(names)]] for at, name in enumerate(names)}


def save_and_load(
    tmp_path: Path, alone: list[str], layouts: dict[str, list[str]], sources: dict[str, list[str]]
) -> None:
    shared = {"timeout": 110, "folder": str(tmp_path)}
    single = {"single": alone}
    run_processes(SCRIPT, "run", processes=1, layouts=single, sources={"single": []}, **shared)
    run_processes(SCRIPT, "run", processes=4, layouts=layouts, sources=sources, **shared)
    run_processes(
        SCRIPT, "run", processes=1, layouts=single, sources={"single": list(layouts)}, saves=False, **shared
    )
