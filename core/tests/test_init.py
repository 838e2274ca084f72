"""Initial weights do not depend on the layout."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hekaton import init
from hekaton.errors import ConfigError
from hekaton.init import (
    BLOCK_NUMEL,
    Constant,
    DepthScaled,
    Normal,
    TruncatedNormal,
    initialize,
    rehearse,
    resolve_init,
)
from hekaton.testing.distributed import run_processes

CASES = Path(__file__).with_name("init_on_processes.py")


def drawn(shape, initializer, *, seed=0, name="weight"):
    model = nn.Module()
    model.register_parameter(name, nn.Parameter(torch.empty(shape)))
    initialize(model, {name: initializer}, seed=seed)
    return model.get_parameter(name).detach()


@pytest.mark.parametrize("processes", [2, 4])
def test_fsdp_draws_the_weights_of_a_single_process(processes):
    run_processes(CASES, "fsdp", processes=processes)


def test_fsdp_over_tensor_parallel_draws_the_weights_of_a_single_process():
    run_processes(CASES, "strided", processes=4)


def test_seed_and_name_each_change_the_values():
    first = drawn((4, 4), Normal(1.0))
    assert torch.equal(first, drawn((4, 4), Normal(1.0)))
    assert not torch.equal(first, drawn((4, 4), Normal(1.0), seed=1))
    assert not torch.equal(first, drawn((4, 4), Normal(1.0), name="other"))


def test_no_two_blocks_of_rows_are_the_same():
    rows = BLOCK_NUMEL // 1024
    values = drawn((2 * rows, 1024), Normal(1.0))
    assert not torch.equal(values[:rows], values[rows:])


def test_moments_are_those_asked_for():
    values = drawn((1000, 1000), Normal(0.3))
    assert values.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert values.std().item() == pytest.approx(0.3, rel=5e-3)
    cut = drawn((1000, 1000), TruncatedNormal(1.0, cutoff=2.0))
    assert cut.abs().max().item() <= 2.0
    assert cut.std().item() == pytest.approx(0.8796, rel=5e-3)  # sd of a standard normal cut at 2
    assert drawn((3,), Constant(1.5)).tolist() == [1.5] * 3


def test_depth_scaled_reads_the_layer_from_the_name():
    model = nn.ModuleDict(
        {"layers": nn.ModuleDict({str(i): nn.Linear(500, 500, bias=False) for i in (0, 7)})}
    )
    initialize(model, {f"layers.{i}.weight": DepthScaled(0.02) for i in (0, 7)}, seed=0)
    assert model["layers"]["0"].weight.std().item() == pytest.approx(0.02 / 2**0.5, rel=1e-2)
    assert model["layers"]["7"].weight.std().item() == pytest.approx(0.02 / 4, rel=1e-2)
    with pytest.raises(ConfigError, match="needs a layer number"):
        drawn((2, 2), DepthScaled(0.02))


def test_a_parameter_without_a_row_is_an_error():
    with pytest.raises(ConfigError, match=r"no entry for bias"):
        resolve_init(nn.Linear(2, 2), {"weight": Normal(1.0)}, what="toy")


def test_a_row_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"entry 'wieght' matches nothing") as caught:
        resolve_init(nn.Linear(2, 2), {"wieght": Normal(1.0), "bias": Normal(1.0)}, what="toy")
    assert "did you mean 'weight'?" in str(caught.value)


def test_tied_parameters_are_drawn_once_under_the_first_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    assert resolve_init(model, {"a.weight": Constant(1.0), "b.weight": Constant(2.0)}, what="toy") == {
        "a.weight": Constant(1.0)
    }
    assert resolve_init(model, {"b.weight": Constant(2.0)}, what="toy") == {"a.weight": Constant(2.0)}


def test_a_dry_run_draws_a_row_of_each_kind_of_parameter(monkeypatch):
    """Not of every layer: a row of many experts is a whole matrix."""
    layers = nn.ModuleList(nn.Linear(3, 4) for _ in range(5))
    model = nn.Sequential(layers, nn.Linear(3, 4))
    rows = {
        "0.*.weight": Normal(1.0),
        "0.*.bias": Constant(0.0),
        "1.weight": Normal(2.0),
        "1.bias": Constant(0.0),
    }
    drawn = []
    draw = init._draw

    def counted(shape, block, initializer, **named):
        drawn.append((named["name"], shape))
        return draw(shape, block, initializer, **named)

    monkeypatch.setattr(init, "_draw", counted)
    rehearse(model, resolve_init(model, rows, what="it"), seed=0)
    assert drawn == [("0.0.weight", (1, 3)), ("0.0.bias", (1,)), ("1.weight", (1, 3)), ("1.bias", (1,))]
    with pytest.raises(ConfigError, match="DepthScaled needs a layer number"):
        rehearse(nn.ModuleDict({"out": nn.Linear(3, 4)}), {"out.weight": DepthScaled(0.02)}, seed=0)
