"""What experts cannot do is said before anything is built; and the dry run knows them."""

import json

import pytest

from hekaton.config import load
from hekaton.errors import HekatonError
from hekaton.rules import check
from hekaton.testing import check_requirement, run_command

P = "--parallelism."
EP, ETP, TP = f"{P}expert_parallel_degree", f"{P}expert_tensor_parallel_degree", f"{P}tensor_parallel_degree"


def said(*flags: str, world_size: int | None = 16, flavor: str = "debugmodel_moe") -> str:
    with pytest.raises(HekatonError) as caught:
        loaded = load(
            [], ["--model.name", "qwen3", "--model.flavor", flavor, "--training.seq_len", "64", *flags]
        )
        check(loaded, world_size=world_size, device_type="cpu")
    return str(caught.value)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            [EP, "3"],
            [
                "parallelism.expert_parallel_degree = 3 does not divide the 16 experts of qwen3 debugmodel_moe",
                "choose one of 1, 2, 4, 8, 16", f"from: {EP}",
            ],
        ),
        (
            [ETP, "5"],
            [
                "expert_tensor_parallel_degree = 5 does not divide 192 of qwen3 debugmodel_moe",
                "layers.*.moe.experts.w1, layers.*.moe.experts.w2, layers.*.moe.experts.w3 are cut",
            ],
        ),
        (
            [EP, "16", ETP, "2"],
            [
                "expert_parallel_degree 16 × expert_tensor_parallel_degree 2 = 32 does not divide the 16 ranks of "
                "data_parallel_shard 16 × context_parallel 1 × tensor_parallel 1",
                "choose degrees whose product divides 16",
            ],
        ),
        (
            [EP, "8", f"{P}data_parallel_replicate_degree", "4"],
            ["= 8 does not divide the 4 ranks of data_parallel_shard 4"],
        ),
        (
            [TP, "4", f"{P}no-sequence_parallel", "--training.seq_len", "66"],
            ["its part of 66 tokens is not divisible by tensor_parallel_degree = 4, among whose ranks layers of experts"],
        ),
        ([EP, "2", f"{P}expert_dispatcher", "altoall"], ["unknown dispatcher 'altoall'", "alltoall"]),
        (["--model.overrides.moe", '{"top_k": 17}'], ["top_k = 17 is more than n_experts = 16"]),
    ],
)  # fmt: skip
def test_degrees_that_do_not_fit_the_experts(flags, parts):
    message = said(*flags)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "named", [["expert_dispatcher", "deepep"], ["expert_parallel_comm_backend", "deepep"]]
)
def test_deepep_is_unavailable_where_it_is_not_installed(named):
    """By its name, and by torchtitan's field."""
    run = ["--model.name", "qwen3", "--model.flavor", "debugmodel_moe", "--model.tokenizer", "byte"]
    run += ["--training.dataset", "python_stdlib", "--world_size", "2"]
    using = [EP, "2", f"{P}{named[0]}", named[1]]
    check_requirement("deep_ep", too_old=None, without=[*run, EP, "2"], using=[*run, *using])


def test_a_model_without_experts_is_refused():
    message = said(EP, "2", ETP, "2", "--debug.moe_force_load_balance", flavor="debugmodel")
    assert "parallelism.expert_parallel_degree = 2, and qwen3 debugmodel has no experts" in message
    assert "parallelism.expert_tensor_parallel_degree = 2, and qwen3 debugmodel has no experts" in message
    assert "debug.moe_force_load_balance is set, and qwen3 debugmodel has no experts" in message


def test_the_dry_run_places_experts_and_counts_what_is_sent(tmp_path):
    """w1 of (8, 16, 32): two experts on each rank of ep 4, each of which is on one of the two of efsdp."""
    overrides = {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "moe": {"n_experts": 8, "hidden_dim": 16},
    }
    done = run_command(
        "config", "show", "--parallel", "--json", "--model.name", "qwen3", "--model.flavor", "debugmodel_moe",
        "--model.overrides", json.dumps(overrides), "--training.seq_len", "64", EP, "4", TP, "2",
        "--training.local_batch_size", "2", "--world_size", "8", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    explained = json.loads(done.stdout)
    rows = {row["name"]: row for row in explained["parameters"]}
    experts = rows["layers.*.moe.experts.w1"]
    assert experts["style"] == "grouped_experts"
    assert experts["placement"].keys() == {"efsdp", "ep"}
    assert experts["local"] == [[[1, 16, 32], 8]]
    sent = [one for one in explained["messages"] if one["axis"] == "ep" and one["kind"] == "all_to_all"]
    # 2 rows of 64 tokens, half of them on each rank of tp, 4 experts each, 32 channels in bfloat16 or float32
    assert {one["size"] for one in sent if one["phase"] == "forward" and one["size"] > 1000} <= {
        64 * 4 * 32 * 2, 64 * 4 * 32 * 4,
    }  # fmt: skip
    assert sent
