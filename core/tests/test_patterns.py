"""Patterns, and the plan's checks, on names written by hand."""

import pytest
import torch
from torch import nn

from hekaton.errors import ConfigError
from hekaton.parallel.plan import ParallelPlan, Stages, blocks, check_plan
from hekaton.patterns import compile_pattern, resolve


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("layers.*.wq", "layers.0.wq", True),
        ("layers.*.wq", "layers.0.attention.wq", False),
        ("layers.*", "layers.12", True),
        ("layers.*", "layers.12.wq", False),
        ("*.{wq,wk}", "attention.wk", True),
        ("*.{wq,wk}", "attention.wv", False),
        ("a.b", "aXb", False),
        ("w{1,3}", "w3", True),
        ("w{1, 3}.x", "w3.x", True),
        ("w*", "w12", True),
        ("w*", "w", False),
        ("w*", "w.x", False),
        ("layers.**.weight", "layers.0.attention.wq.weight", True),
        ("layers.**.weight", "layers.weight", True),
        ("layers.**.weight", "layers.0.attention.wq.bias", False),
        ("layers.**.weight", "layersX.weight", False),
        ("layers.**.weight", "layers.0weight", False),
        ("**.weight", "weight", True),
        ("**.weight", "a.b.weight", True),
        ("**.weight", "aweight", False),
        ("layers.**", "layers", True),
        ("layers.**", "layers.0.wq", True),
        ("layers.*.**", "layers", False),
        ("layers.*.**", "layers.0", True),
        ("**", "a.b.c", True),
        ("a.**.b.**.c", "a.x.b.c", True),
        ("a.**.b.**.c", "a.c", False),
    ],
)
def test_a_pattern_matches_names(pattern, name, matches):
    assert bool(compile_pattern(pattern).fullmatch(name)) is matches


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "a..b",
        ".a",
        "a.",
        "layers**",
        "**s.a",
        "a.***",
        "{a",
        "a}",
        "{a,{b}}",
        "{}",
        "{a,}",
        "{a.b,c}",
        "{*,b}",
    ],
)
def test_an_invalid_pattern_is_an_error(pattern):
    with pytest.raises(ConfigError, match="is no pattern"):
        compile_pattern(pattern)


def test_a_row_that_matches_deeper_names_is_one_row_of_the_table():
    names = ["embed.weight", "layers.0.wq.weight", "layers.0.norm.weight"]
    assert resolve({"layers.**": 1, "embed.*": 2}, names, what="toy") == dict(
        zip(names, [2, 1, 1], strict=True)
    )
    with pytest.raises(ConfigError, match=r"toy: both 'layers\.\*\*' and '\*\*\.norm\.weight' match"):
        resolve({"layers.**": 1, "**.norm.weight": 2}, names, what="toy")


def test_two_rows_for_one_name_are_an_error():
    with pytest.raises(ConfigError, match=r"toy: both 'a\.\*' and 'a\.b' match 'a\.b'"):
        resolve({"a.*": 1, "a.b": 2}, ["a.b"], what="toy")


def layered() -> nn.Module:
    layers = nn.ModuleDict({str(i): nn.ModuleDict({"wq": nn.Linear(2, 2, bias=False)}) for i in range(2)})
    return nn.ModuleDict({"embed": nn.Embedding(3, 2), "layers": layers})


def test_blocks_come_in_order():
    assert [name for name, _ in blocks(layered(), ParallelPlan(block="layers.*"))] == ["layers.0", "layers.1"]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (ParallelPlan(block="layer.*"), "entry 'layer.*' matches nothing"),
        (ParallelPlan(block="layers.**"), "block 'layers.**' matches 'layers' and, inside it, 'layers.0'"),
        (ParallelPlan(block="layer*.**.*"), "matches 'layers.0' and, inside it, 'layers.0.wq'"),
        (
            ParallelPlan(block="layers.*", context=["layers.*.inner"]),
            "entry 'layers.*.inner' matches nothing",
        ),
        (ParallelPlan(block="layers.*", stages=Stages(last=["out"])), "entry 'out' matches nothing"),
        (
            ParallelPlan(block="layers.*", tensor={"layers.*.wk": "colwise"}),
            "entry 'layers.*.wk' matches nothing",
        ),
        (ParallelPlan(block="layers.*", tensor={"layers.*.wq": "colwise"}), "no entry covers embed.weight"),
    ],
)
def test_a_plan_that_does_not_fit_is_an_error(plan, message):
    with pytest.raises(ConfigError) as caught:
        check_plan(layered(), plan, what="toy")
    assert message in str(caught.value)


def test_a_parameter_of_the_model_itself_needs_a_module():
    model = layered()
    model.scale = nn.Parameter(torch.empty(1))
    plan = ParallelPlan(block="layers.*", tensor={"layers.*.wq": "colwise", "embed": "replicate"})
    with pytest.raises(ConfigError) as caught:
        check_plan(model, plan, what="toy")
    assert str(caught.value) == (
        "plan of toy: no entry covers scale\n"
        "  entries name modules, so give each parameter of the model itself a module of its own: scale"
    )


def test_a_plan_that_fits_passes():
    plan = ParallelPlan(
        block="layers.*",
        tensor={"embed": "replicate", "layers.*.wq": "colwise"},
        stages=Stages(first=["embed"]),
    )
    check_plan(layered(), plan, what="toy")
