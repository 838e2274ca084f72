"""``hekaton config show --parallel``: numbers that a calculation by hand gives too."""

import json
import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hekaton.cli import main
from hekaton.dry_run.fake import fake_process_group, rank_of
from hekaton.dry_run.observe import Observer
from hekaton.mesh import ParallelDims
from hekaton.parallel.plan import ParallelPlan

DIM, HIDDEN, VOCAB, LAYERS, ROWS, SEQ = 48, 96, 264, 4, 4, 32
OVERRIDES = {
    "dim": DIM, "n_layers": LAYERS, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": HIDDEN, "vocab_size": VOCAB,
}  # fmt: skip
FLAGS = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--model.overrides", json.dumps(OVERRIDES), "--training.local_batch_size", str(ROWS),
    "--training.seq_len", str(SEQ), "--activation_checkpoint.mode", "none",
]  # fmt: skip
BLOCK = 2 * DIM * DIM + 2 * DIM * DIM // 2 + 3 * DIM * HIDDEN + 2 * DIM
"""Parameters of a block: wq and wo, wk and wv of half the heads, w1 to w3, two norms."""
ENDS = 2 * VOCAB * DIM + DIM
HIDDEN_STATES = ROWS * SEQ * DIM * 2
"""Bytes of what passes between layers, in bfloat16."""


@pytest.fixture
def show(capsys, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("")

    def of(*words):
        status = main(["config", "show", "--parallel", str(file), *FLAGS, *words])
        assert status == 0
        return capsys.readouterr().out

    return of


def degrees(**of):
    return [word for axis, degree in of.items() for word in (f"--parallelism.{axis}_degree", str(degree))]


def messages(layout):
    return {
        (row["phase"], row["module"], row["kind"], row["axis"], row["ranks"]): (row["times"], row["size"])
        for row in layout["messages"]
    }


def test_where_parameters_lie(show):
    layout = json.loads(show("--world_size", "6", "--json", *degrees(tensor_parallel=2)))
    assert layout["degrees"] == {"pp": 1, "dp_replicate": 1, "dp_shard": 3, "cp": 1, "tp": 2}
    rows = {row["name"]: row for row in layout["parameters"]}
    assert rows.keys() == {
        "tok_embeddings.weight", "norm.weight", "output.weight",
        *(f"layers.*.attention.{w}.weight" for w in ("wq", "wk", "wv", "wo")),
        *(f"layers.*.feed_forward.{w}.weight" for w in ("w1", "w2", "w3")),
        "layers.*.attention_norm.weight", "layers.*.ffn_norm.weight",
    }  # fmt: skip
    colwise = rows["layers.*.feed_forward.w1.weight"]
    assert (colwise["count"], colwise["style"], colwise["shape"]) == (LAYERS, "colwise", [HIDDEN, DIM])
    assert colwise["placement"] == {"fsdp": "dim 0 of tp's part", "tp": "dim 0"}
    assert colwise["local"] == [[[16, DIM], 6]]
    rowwise = rows["layers.*.feed_forward.w2.weight"]
    assert rowwise["placement"] == {"fsdp": "dim 0", "tp": "dim 1"}
    assert rowwise["local"] == [[[16, HIDDEN // 2], 6]]
    # 264 ids over tp are 132 each; over 3 ranks 44. 264 rows by fsdp alone would be 88.
    assert rows["output.weight"]["local"] == [[[44, DIM], 6]]
    assert rows["norm.weight"]["placement"] == {"fsdp": "dim 0", "tp": "whole"}


def test_uneven_parts_are_told_apart(show):
    layout = json.loads(show("--world_size", "10", "--json", *degrees(tensor_parallel=2)))
    rows = {row["name"]: row["local"] for row in layout["parameters"]}
    # 48 over 5 ranks: 10, 10, 10, 10, 8. Each twice, for the two ranks of tp.
    assert rows["norm.weight"] == [[[10], 8], [[8], 2]]
    assert rows["layers.*.attention.wo.weight"] == [[[10, DIM // 2], 8], [[8, DIM // 2], 2]]


def test_what_fsdp_sends(show):
    layout = json.loads(show("--world_size", "2", "--json"))
    sent = messages(layout)
    # Parameters travel in bfloat16, gradients in float32; each block is gathered again for backward, but the
    # last one's prefetch belongs to the model.
    assert sent["forward", "layers.*", "all_gather", "fsdp", 2] == (LAYERS, BLOCK * 2)
    assert sent["backward", "layers.*", "reduce_scatter", "fsdp", 2] == (LAYERS, BLOCK * 4)
    assert sent["forward", "", "all_gather", "fsdp", 2] == (1, ENDS * 2)
    again = sum(times for (phase, _, kind, *_), (times, _) in sent.items() if (phase, kind) == ("backward", "all_gather"))  # fmt: skip
    assert again == LAYERS
    assert layout["held"] == {
        "parameters": (LAYERS * BLOCK + ENDS) * 4 // 2,
        "gradients": (LAYERS * BLOCK + ENDS) * 4 // 2,
        # two moments of each parameter, and the count of steps of each of the 9 in a block and 3 others
        "optimizer state": (LAYERS * BLOCK + ENDS) * 4 + 4 * (9 * LAYERS + 3),
    }


def test_what_parameters_that_stay_gathered_save(show):
    kept = json.loads(
        show("--world_size", "2", "--json", "--parallelism.fsdp_reshard_after_forward", "never")
    )
    freed = json.loads(
        show("--world_size", "2", "--json", "--parallelism.fsdp_reshard_after_forward", "always")
    )
    assert not [row for row in kept["messages"] if (row["phase"], row["kind"]) == ("backward", "all_gather")]
    # The peak is in the loss, with its logits: all blocks are gathered then, or none.
    assert kept["peak"] - freed["peak"] == LAYERS * BLOCK * 2


def test_what_tensor_parallel_sends(show):
    sent = messages(json.loads(show("--world_size", "2", "--json", *degrees(tensor_parallel=2))))
    # Twice a block the sequence is put together, and its sums distributed again; in backward likewise.
    assert sent["forward", "layers.*", "all_gather", "tp", 2] == (2 * LAYERS, HIDDEN_STATES)
    assert sent["forward", "layers.*.attention", "reduce_scatter", "tp", 2] == (LAYERS, HIDDEN_STATES)
    assert sent["forward", "layers.*.feed_forward", "reduce_scatter", "tp", 2] == (LAYERS, HIDDEN_STATES)
    assert sent["backward", "layers.*", "all_gather", "tp", 2] == (2 * LAYERS, HIDDEN_STATES)
    assert sent["backward", "layers.*", "reduce_scatter", "tp", 2] == (2 * LAYERS, HIDDEN_STATES)
    assert not [key for key in sent if key[3] == "fsdp"]


def test_stages_and_what_passes_between_them(show):
    pp = degrees(pipeline_parallel=2)
    layout = json.loads(show("--world_size", "4", "--rank", "3", "--json", *pp))
    assert [(row["stage"], row["pp_rank"], row["modules"]) for row in layout["stages"]] == [
        (0, 0, ["tok_embeddings", "layers.0", "layers.1"]),
        (1, 1, ["layers.2", "layers.3", "norm", "output"]),
    ]
    sent = messages(layout)
    microbatch = HIDDEN_STATES // ROWS
    assert sent["step", "", "receive", "pp", 2] == (ROWS, microbatch)
    assert sent["step", "", "send", "pp", 2] == (ROWS, microbatch)
    assert sum(row["count"] for row in layout["parameters"]) == 9 * LAYERS + 3
    assert layout["held"]["parameters"] == (2 * BLOCK + VOCAB * DIM + DIM) * 4 // 2


def test_the_layout_is_printed_as_text(show):
    text = show("--world_size", "8", *degrees(pipeline_parallel=2, tensor_parallel=2))
    assert "mesh of 8 processes: pp 2 × dp_replicate 1 × dp_shard 2 × cp 1 × tp 2" in text
    assert re.search(r"\n  0 +pp rank 0 +tok_embeddings, layers.0-1\n", text)
    assert re.search(r"\n  layers.\*.feed_forward.w1.weight +4 +colwise +\(96, 48\) .*\(24, 48\)\n", text)
    assert "rank 0 communicates, in one step:" in text


def test_a_single_process_sends_nothing(show):
    text = show()
    assert "in one step:\n  nothing\n" in text


def test_a_wrong_configuration_is_reported_instead(capsys, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[parallelism]\ntensor_parallel_degree = 3\n")
    assert main(["config", "show", "--parallel", str(file), "--world_size", "3"]) == 2
    assert "tensor_parallel_degree = 3 does not divide" in capsys.readouterr().err
    assert main(["config", "show", "--parallel", str(file), "--rank", "9"]) == 2
    assert "--rank = 9: there are ranks 0 to 2" in capsys.readouterr().err


def test_the_peak_counts_tensors_that_exist_at_once():
    with fake_process_group(rank_of(1, 0, what="")):
        meshes = ParallelDims().build_mesh("cpu")
        with FakeTensorMode() as mode, Observer([], ParallelPlan(block="none"), meshes, mode) as observer:
            first = torch.zeros(1000)
            second = first + 1
            del first
            third = second[:10] * 2
            second.untyped_storage().resize_(0)
            fourth = torch.zeros(500)
    assert third.numel() + fourth.numel() == 510
    assert observer.peak == 4 * 2000
    # and no more than that: 1000 of the second went before the fourth came
    assert observer._held == 4 * (10 + 500)
