"""A model is built on the meta device, unless it has more modules than any model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import nn

import hekaton.meta
from hekaton.errors import ConfigError, PluginError
from hekaton.meta import on_meta, tables_of
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec


@dataclass(frozen=True)
class Size:
    n_layers: int


def build(size: Size) -> nn.Module:
    return nn.ModuleList(nn.Sequential(nn.Identity()) for _ in range(size.n_layers))


def test_a_model_with_too_many_modules_is_refused_before_all_are_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hekaton.meta, "MAX_MODULES", 40)
    spec = TrainSpec(
        name="deep", model=build, flavors={}, plan=lambda _: ParallelPlan(block="*"), init=lambda _: {}
    )
    assert len(list(on_meta(spec, Size(20)).modules())) == 41  # with the list itself
    with pytest.raises(ConfigError, match="deep has more than 40 modules") as refused:
        on_meta(spec, Size(10**12))
    assert refused.value.hint == "n_layers is 1,000,000,000,000"
    nn.ModuleList(nn.Identity() for _ in range(50))  # nobody counts any more


@pytest.mark.parametrize(
    ("field", "gives", "said"),
    [
        ("model", 3, "model of its TrainSpec gives int, not Module"),
        ("plan", None, "plan of its TrainSpec gives NoneType, not ParallelPlan"),
        ("init", None, "init of its TrainSpec gives NoneType, not Mapping"),
        ("init", {"a": 1.0}, "init gives 1.0 for 'a'"),
    ],
)
def test_what_a_specification_gives_is_of_its_kind(field, gives, said):
    fields = {"model": build, "plan": lambda _: ParallelPlan(block="*"), "init": lambda _: {}}
    spec = TrainSpec(name="wrong", flavors={}, **{**fields, field: lambda _: gives})
    with pytest.raises(PluginError, match=f"^model 'wrong': {said}"):
        on_meta(spec, Size(1))
        tables_of(spec, Size(1))
