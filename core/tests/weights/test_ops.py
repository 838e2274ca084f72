"""Every op against a hand-made counterpart, both ways, whole and in part; tables of models unlike Llama."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from hekaton.errors import CheckpointError
from hekaton.weights import (
    Each,
    Fuse,
    Inverse,
    LazyTensor,
    Op,
    RotaryHalves,
    Transpose,
    Unstack,
    WeightTable,
    cast,
    entry,
    whole,
)


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


Q, K, V = numbered(8, 3), 100 + numbered(4, 3), 200 + numbered(4, 3)
STACKED = numbered(3, 4, 6)

CASES: dict[str, tuple[Op, list[torch.Tensor], list[torch.Tensor]]] = {
    "transpose": (Transpose(), [STACKED], [STACKED.permute(0, 2, 1)]),
    "rotary, two heads of four": (RotaryHalves(2), [Q], [Q[[0, 2, 1, 3, 4, 6, 5, 7]]]),
    "rotary, a bias": (RotaryHalves(1), [numbered(6)], [torch.tensor([0.0, 2, 4, 1, 3, 5])]),
    "fuse, uneven": (Fuse((8, 4, 4)), [Q, K, V], [torch.cat([Q, K, V])]),
    "fuse, along dim 1": (Fuse((3, 3), dim=1), [Q, Q], [torch.cat([Q, Q], 1)]),
    # Two key/value groups, each with its queries before it.
    "fuse, by group": (
        Fuse((8, 4, 4), groups=2),
        [Q, K, V],
        [torch.cat([Q[:4], K[:2], V[:2], Q[4:], K[2:], V[2:]])],
    ),
    "fuse, rows in turns": (
        Fuse((4, 4), groups=4),
        [K, V],
        [torch.stack([K[0], V[0], K[1], V[1], K[2], V[2], K[3], V[3]])],
    ),
    "unstack": (Unstack(3), [STACKED], list(STACKED)),
    "each": (Each(None, Transpose()), [Q, K], [Q, K.T]),
    "inverse": (Inverse(Unstack(3)), list(STACKED), [STACKED]),
}


@pytest.mark.parametrize("name", CASES)
def test_an_op_and_its_inverse_restore_the_tensor(name: str) -> None:
    op, ours, theirs = CASES[name]
    for convert, given, expected in ((op.to_hf, ours, theirs), (op.from_hf, theirs, ours)):
        results = convert([whole(tensor) for tensor in given])
        assert len(results) == len(expected)
        for result, wanted in zip(results, expected, strict=True):
            assert result.shape == tuple(wanted.shape)
            assert torch.equal(result.read(), wanted)
            for start in range(result.shape[0]):
                for stop in range(start + 1, result.shape[0] + 1):
                    last = slice(result.shape[-1] - 1, result.shape[-1])
                    region = (slice(start, stop), *result.everything[1:])
                    region = (*region[:-1], last) if len(region) > 1 else region
                    assert torch.equal(result.read(region), wanted[region]), region


def counted(tensor: torch.Tensor) -> tuple[LazyTensor, list[int]]:
    """A lazy tensor, and how many values each read of it asked for."""
    reads: list[int] = []

    def load(region: tuple[slice, ...]) -> torch.Tensor:
        reads.append(tensor[region].numel())
        return tensor[region]

    return LazyTensor(tuple(tensor.shape), tensor.dtype, load), reads


def test_part_of_a_result_reads_part_of_its_source() -> None:
    two_columns = slice(0, 2)
    for op, source, region, most in [
        (RotaryHalves(2), Q, (slice(4, 6), two_columns), 4 * 2),
        (Transpose(), STACKED, (slice(1, 2), slice(0, 6), slice(0, 1)), 6),
        (Inverse(Fuse((8, 4, 4))), torch.cat([Q, K, V]), (slice(1, 3), slice(0, 3)), 2 * 3),
        (Unstack(3), STACKED, (slice(0, 2), slice(0, 6)), 2 * 6),
    ]:
        lazy, reads = counted(source)
        op.to_hf([lazy])[0].read(region)
        assert sum(reads) <= most, op
    parts = [counted(tensor) for tensor in STACKED]
    Unstack(3).from_hf([lazy for lazy, _ in parts])[0].read((slice(1, 2), slice(0, 4), slice(0, 6)))
    assert [sum(reads) for _, reads in parts] == [0, 24, 0]


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (RotaryHalves(3), [(8, 3)]),
        (RotaryHalves(8), [(24, 3)]),
        (Fuse((8, 4, 4)), [(8, 3), (4, 3), (3, 3)]),
        (Fuse((8, 4)), [(8, 3), (4, 2)]),
        (Inverse(Fuse((8, 4))), [(13, 3)]),
        (Unstack(3), [(4, 2)]),
        (Inverse(Unstack(2)), [(4, 2), (2, 2)]),
    ],
)
def test_a_shape_that_does_not_fit_an_op_is_an_error(op: Op, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(CheckpointError):
        op.to_hf([whole(torch.empty(shape, device="meta")) for shape in shapes])


def test_cast_leaves_what_is_no_floating_point() -> None:
    assert cast(whole(torch.ones(2)), torch.bfloat16).read().dtype == torch.bfloat16
    assert cast(whole(torch.ones(2, dtype=torch.int64)), torch.bfloat16).dtype == torch.int64


def test_cast_refuses_a_value_that_would_become_infinite() -> None:
    values = torch.tensor([1.0, -70_000.0, torch.inf, torch.nan])
    with pytest.raises(
        CheckpointError, match=r"norm\.weight has a value of 70000, and float16 ends at 65504"
    ):
        cast(whole(values), torch.float16, what="norm.weight").read()
    kept = cast(whole(values[[0, 2, 3]]), torch.float16).read()  # what isn't finite was so before
    assert torch.equal(kept.nan_to_num(7), torch.tensor([1.0, 65504, 7]).half())


def test_a_table_of_more_layers_than_any_model_has_is_refused() -> None:
    WeightTable(entries=[], layers=2000, experts=500)
    with pytest.raises(CheckpointError, match="1,000,000,000 layers are more than"):
        WeightTable(entries=[], layers=10**9)
    with pytest.raises(CheckpointError, match="8 layers of 1,000,000 experts are more than"):
        WeightTable(entries=[], layers=8, experts=10**6)


def lazies(tensors: Mapping[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: whole(tensor) for name, tensor in tensors.items()}


def both_ways(table: WeightTable, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    exported = table.to_hf(lazies(ours), what="ours")
    assert {name: tensor.read().tolist() for name, tensor in exported.items()} == {
        name: tensor.tolist() for name, tensor in theirs.items()
    }
    imported = table.from_hf(lazies(theirs), what="theirs")
    assert {name: tensor.read().tolist() for name, tensor in imported.items()} == {
        name: tensor.tolist() for name, tensor in ours.items()
    }


def test_a_mixture_of_experts_with_one_tensor_per_expert() -> None:
    """Layer 0 is dense; experts are stacked here, apart there; their biases are apart on both sides."""
    table = WeightTable(
        entries=[
            entry("layers.{i}.w1", "model.layers.{i}.mlp.gate_proj.weight", layers=range(1)),
            entry(
                "layers.{i}.experts.w1",
                "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
                Transpose(1, 2),
                Unstack(3),
                layers=range(1, 3),
            ),
            entry("layers.{i}.bias.{e}", "model.layers.{i}.mlp.experts.{e}.bias", layers=range(1, 3)),
        ],
        layers=3,
        experts=3,
    )
    ours = {"layers.0.w1": Q}
    theirs = {"model.layers.0.mlp.gate_proj.weight": Q}
    for i in (1, 2):
        ours[f"layers.{i}.experts.w1"] = STACKED + 1000 * i
        for e in range(3):
            theirs[f"model.layers.{i}.mlp.experts.{e}.gate_proj.weight"] = (STACKED[e] + 1000 * i).T
            ours[f"layers.{i}.bias.{e}"] = theirs[f"model.layers.{i}.mlp.experts.{e}.bias"] = numbered(e + 1)
    both_ways(table, ours, theirs)


def test_fused_attention_and_alternating_experts() -> None:
    """As in GPT-OSS: one tensor of q, k, v; gate and up in alternating columns of (experts, dim, 2 hidden)."""
    table = WeightTable(
        entries=[
            entry(
                ("wq", "wk", "wv"),
                "attn.qkv.weight",
                Each(RotaryHalves(2), RotaryHalves(1), None),
                Fuse((8, 4, 4)),
            ),
            entry(
                ("experts.w1", "experts.w3"),
                "experts.gate_up_proj",
                Transpose(1, 2),
                Fuse((4, 4), dim=2, groups=4),
            ),
        ]
    )
    gate, up = STACKED, STACKED + 500
    gate_up = torch.stack([gate, up], dim=2).reshape(3, 8, 6).permute(0, 2, 1)
    qkv = torch.cat([Q[[0, 2, 1, 3, 4, 6, 5, 7]], K[[0, 2, 1, 3]], V])
    both_ways(
        table,
        {"wq": Q, "wk": K, "wv": V, "experts.w1": gate, "experts.w3": up},
        {"attn.qkv.weight": qkv, "experts.gate_up_proj": gate_up},
    )


TIED = WeightTable(
    entries=[entry("embedding", "embed.weight"), entry("layers.{i}.w", "layers.{i}.weight")],
    layers=2,
    tied={"head.weight": "embed.weight"},
    ignored=["layers.{i}.inv_freq"],
)
THEIRS = {"embed.weight": Q, "layers.0.weight": K, "layers.1.weight": V}


def test_a_tied_tensor_is_not_written_and_may_be_read() -> None:
    both_ways(TIED, {"embedding": Q, "layers.0.w": K, "layers.1.w": V}, THEIRS)
    with_head = TIED.from_hf(lazies(THEIRS | {"head.weight": Q.clone()}), what="theirs")
    assert set(with_head) == {"embedding", "layers.0.w", "layers.1.w"}
    with pytest.raises(CheckpointError, match=r"theirs: 'head.weight' differs from 'embed.weight'"):
        TIED.from_hf(lazies(THEIRS | {"head.weight": Q + 1}), what="theirs")


def test_ignored_tensors_are_left_out() -> None:
    assert len(TIED.from_hf(lazies(THEIRS | {"layers.1.inv_freq": Q}), what="theirs")) == 3


def test_names_without_a_row_are_listed_on_either_side() -> None:
    extra = {f"layers.{i}.q_norm": Q for i in range(2)} | {"lm.bias": Q}
    theirs = {name: tensor for name, tensor in THEIRS.items() if "layers" not in name}
    with pytest.raises(CheckpointError) as error:
        TIED.from_hf(lazies(theirs | extra), what="hf/")
    assert str(error.value) == (
        "hf/ does not hold the tensors of this model\n"
        "  2 missing: layers.*.weight (2)\n"
        "  3 unknown: layers.*.q_norm (2), lm.bias"
    )
    with pytest.raises(CheckpointError) as error:
        TIED.from_hf(lazies(THEIRS | extra), what="hf/")
    assert "missing" not in str(error.value)
    with pytest.raises(CheckpointError) as error:
        TIED.to_hf(lazies({"embedding": Q, "layers.0.w": K, "head": Q}), what="step-3")
    assert str(error.value) == (
        "step-3 does not hold the tensors of this model\n  1 missing: layers.1.w\n  1 unknown: head"
    )


def test_an_op_that_refuses_says_of_which_tensor() -> None:
    table = WeightTable(entries=[entry("layers.{i}.wq", "layers.{i}.q", RotaryHalves(3))], layers=1)
    with pytest.raises(CheckpointError, match=r"^hf/: layers.0.q: 8 rows are not 3 heads"):
        table.from_hf(lazies({"layers.0.q": Q}), what="hf/")
