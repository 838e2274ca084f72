"""What a model's configuration refuses, and what the model cannot do of what a run asks, before anything is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hekaton.building import model_config
from hekaton.config import load
from hekaton.errors import HekatonError
from hekaton.rules import check
from hekaton_blocks import RopeScaling
from hekaton_llama3.spec import flavors

FLAGS = ["--model.name", "llama3", "--model.tokenizer", "byte", "--training.dataset", "python_stdlib"]

PLUGIN = """
from dataclasses import dataclass, replace
from typing import Literal

from hekaton.config import SectionModel
from hekaton.contributions import ContextParallel, Model, Ref, Section, hookimpl
from hekaton.init import Constant
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import Refusal, TrainSpec
from torch import nn


class Heads(SectionModel):
    n_heads: int = 2


@dataclass(frozen=True)
class Config:
    dim: int = 8
    n_heads: int = 2
    positions: int = 1024
    widths: tuple[int, ...] = (1, 2)
    kind: Literal["gelu", "relu"] = "gelu"
    requires: tuple[str, ...] = ()

    def __post_init__(self):
        if self.dim % self.n_heads:
            raise ValueError(f"{self.n_heads} heads do not divide dim {self.dim}")


def check(config, facts):
    if facts.seq_len > config.positions:
        yield Refusal(
            f"has {config.positions} positions, fewer than the {facts.seq_len} tokens of a sequence",
            ["training.seq_len", "positions"],
            hint=f"choose training.seq_len = {config.positions} or less",
        )
    if facts.cp > 1 and facts.packed:
        yield Refusal("cannot keep documents apart under context parallel")


def configure(config, section):
    if section.n_heads > 100:
        raise ValueError("more heads than channels")
    return replace(config, n_heads=section.n_heads, dim=config.dim * section.n_heads)


def model(config):
    whole = nn.Module()
    whole.layers = nn.ModuleList([nn.Linear(config.dim, config.dim, bias=False)])
    whole.layers[0].requires = config.requires
    return whole


def plan(config):
    return ParallelPlan(block="layers.*", tensor={"layers.*": "colwise"}, context=["layers.*"])


spec = TrainSpec(
    name="positions", model=model, flavors={"debugmodel": Config()}, plan=plan,
    init=lambda config: {"layers.*.weight": Constant(1.0)}, configure=configure, check=check,
)


@hookimpl
def hekaton_models():
    return [Model("positions", spec=Ref("positions:spec"), section="heads")]


@hookimpl
def hekaton_context_parallel():
    build = Ref("positions:spec")
    return [
        ContextParallel("of_mine", build=build, supports=("window",)),
        ContextParallel("of_mine_with_gaps", build=build, supports=("window", "gaps")),
    ]


@hookimpl
def hekaton_sections():
    return [Section("heads", schema=Ref("positions:Heads"))]
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that choose the model of :data:`PLUGIN`."""
    plugin = tmp_path_factory.mktemp("plugin") / "positions.py"
    plugin.write_text(PLUGIN)
    load_it = ["--plugins.load", str(plugin), "--model.name", "positions"]
    return [*load_it, "--model.tokenizer", "byte", "--training.dataset", "python_stdlib"]


def refusal(*flags: str) -> str:
    with pytest.raises(HekatonError) as caught:
        check(load([], flags), world_size=1, device_type="cpu")
    return str(caught.value)


def overrides(**values: object) -> list[str]:
    return ["--model.overrides", json.dumps(values)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 0}, "model.overrides.dim must be greater than 0, not 0"),
        ({"n_layers": -2}, "model.overrides.n_layers must be greater than 0, not -2"),
        ({"dim": "256"}, 'model.overrides.dim must be an integer, not "256"'),
        ({"norm_eps": -1}, "model.overrides.norm_eps must be greater than or equal to"),
        ({"rope_theta": 0}, "model.overrides.rope_theta must be greater than or equal to 1, not 0"),
        ({"n_heads": 3}, "dim = 256 over n_heads = 3 must be a whole and even number of channels"),
        ({"dim": 72}, "dim = 72 over n_heads = 8 must be a whole and even number of channels"),
        ({"n_kv_heads": 3}, "n_kv_heads = 3 does not divide n_heads = 8"),
        ({"rope_scaling": 8}, "model.overrides.rope_scaling must be"),
        ({"rope_scaling": {}}, "model.overrides.rope_scaling: needs factor"),
        (
            {"rope_scaling": {"fctor": 8.0}},
            "model.overrides.rope_scaling.fctor: model.overrides.rope_scaling has no field 'fctor'",
        ),
        (
            {"rope_scaling": {"factor": "8"}},
            'model.overrides.rope_scaling.factor must be a number, not "8"',
        ),
        (
            {"rope_scaling": {"factor": 8, "low_freq_factor": 5}},
            "low_freq_factor = 5 is more than high_freq_factor = 4",
        ),
    ],
)
def test_llama3_refuses(values: dict[str, object], message: str) -> None:
    said = refusal(*FLAGS, *overrides(**values))
    assert message in said
    assert "from: --model.overrides" in said


def test_a_nested_configuration_is_made_of_its_table() -> None:
    loaded = load([], [*FLAGS, *overrides(rope_scaling={"factor": 8, "original_context": 64})])
    check(loaded, world_size=1, device_type="cpu")
    _, config = model_config(loaded.config, loaded.plugins)
    assert config.rope_scaling == RopeScaling(factor=8.0, original_context=64)


def test_a_nested_configuration_keeps_the_fields_that_are_not_named() -> None:
    loaded = load([], [*FLAGS, "--model.flavor", "1B", *overrides(rope_scaling={"original_context": 64})])
    _, config = model_config(loaded.config, loaded.plugins)
    assert flavors["1B"].rope_scaling == RopeScaling(factor=32.0)
    assert config.rope_scaling == RopeScaling(factor=32.0, original_context=64)


def test_every_wrong_field_is_reported_with_its_place(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(
        "[model.overrides]\ndim = 0\nn_layers = true\n[model.overrides.rope_scaling]\nfactor = -1\n"
    )
    with pytest.raises(HekatonError) as caught:
        load([run], FLAGS)
    places = [line.rpartition(", ")[2] for line in str(caught.value).splitlines() if "from: " in line]
    assert places == ["line 2", "line 3", "line 5"]


def test_a_list_makes_a_tuple_and_names_are_checked(mine: list[str]) -> None:
    loaded = load([], [*mine, *overrides(widths=[3, 4, 5], kind="relu")])
    config = model_config(loaded.config, loaded.plugins)[1]
    assert (config.widths, config.kind) == ((3, 4, 5), "relu")
    assert "model.overrides.kind must be 'gelu' or 'relu'" in refusal(*mine, *overrides(kind="gelo"))


def test_errors_of_the_dataclass_are_reported_once_with_the_overrides_places(mine: list[str]) -> None:
    said = refusal(*mine, *overrides(dim=9), "--parallelism.tensor_parallel_degree", "2")
    assert said.count("2 heads do not divide dim 9") == 1
    assert "from: --model.overrides" in said


def test_the_models_own_section_comes_before_the_overrides(mine: list[str]) -> None:
    """Three heads make dim 24, so that dim 9 is right with them and wrong with the flavor's two."""
    loaded = load([], [*mine, "--heads.n_heads", "3", *overrides(dim=9)])
    assert model_config(loaded.config, loaded.plugins)[1].dim == 9
    assert "[heads]: more heads than channels" in refusal(*mine, "--heads.n_heads", "101")


def test_a_model_refuses_sequences_longer_than_its_positions(mine: list[str]) -> None:
    said = refusal(*mine, "--training.seq_len", "2048")
    assert "positions debugmodel has 1024 positions, fewer than the 2048 tokens of a sequence" in said
    assert "from: --training.seq_len" in said
    assert "choose training.seq_len = 1024 or less" in said
    said = refusal(*mine, "--training.seq_len", "64", "--validation.enable", "--validation.seq_len", "1025")
    assert "fewer than the 1025 tokens" in said
    said = refusal(*mine, "--training.seq_len", "64", *overrides(positions=63))
    assert "has 63 positions" in said
    assert "from: --training.seq_len; --model.overrides" in said


def test_a_model_refuses_a_layout(mine: list[str]) -> None:
    cp = [*mine, "--training.seq_len", "64", "--parallelism.context_parallel_degree", "2"]
    assert "cannot keep documents apart under context parallel" in refusal(*cp)
    assert "cannot keep documents apart" not in refusal(*cp, "--training.packing", "concat")


def test_a_strategy_is_refused_without_what_the_attention_requires(mine: list[str]) -> None:
    cp = [*mine, "--training.seq_len", "64", "--training.packing", "concat"]
    cp += ["--parallelism.context_parallel_degree", "2", "--parallelism.context_parallel_strategy"]
    said = refusal(*cp, "of_mine", *overrides(requires=["window", "gaps"]))
    assert "'of_mine' does not support what the attention of positions debugmodel requires: gaps (" in said
    assert "choose context_parallel_strategy = 'of_mine_with_gaps'" in said
    assert "from: --parallelism.context_parallel_strategy" in said
    said = refusal(*cp, "of_mine", *overrides(requires=["window", "holes"]))
    assert "choose context_parallel_degree = 1: no installed strategy supports it" in said
    for strategy, requires in (("of_mine", ["window"]), ("ring", ["chunks", "sinks"])):
        assert "does not support" not in refusal(*cp, strategy, *overrides(requires=requires, dim=7))


def test_what_is_accepted_is_not_refused(mine: list[str]) -> None:
    loaded = load([], [*mine, "--training.seq_len", "1024"])
    check(loaded, world_size=1, device_type="cpu")
