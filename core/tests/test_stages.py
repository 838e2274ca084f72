"""Which layers each pipeline stage gets, against sizes worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from hekaton.config.sections import ParallelismSection
from hekaton.parallel.pipeline import StageLayout, cut, stage_layout
from hekaton.parallel.plan import ParallelPlan, Stages

PLAN = ParallelPlan(
    block="layers.*", stages=Stages(first=["embedding"], layers="layers", last=["norm", "output"])
)
INTERLEAVED = {"pipeline_parallel_schedule": "Interleaved1F1B"}


def model(layers: int) -> nn.Module:
    made = nn.Module()
    made.embedding = nn.Embedding(4, 2)
    made.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))
    made.norm = nn.LayerNorm(2)
    made.output = nn.Linear(2, 4)
    return made


def less(first: int, last: int) -> dict[str, int]:
    return {
        "pipeline_parallel_first_stage_less_layers": first,
        "pipeline_parallel_last_stage_less_layers": last,
    }


@pytest.mark.parametrize(
    ("layers", "degree", "settings", "sizes"),
    [
        (8, 2, {}, [4, 4]),  # 8 + 1 + 1 shared by two: 5 each, less one each
        (8, 4, {}, [2, 3, 2, 1]),  # 10 by four: 3, 3, 2, 2
        (8, 4, less(0, 0), [2, 2, 2, 2]),
        (8, 2, less(2, 0), [3, 5]),  # 10 by two: 5, 5
        (7, 2, less(0, 2), [5, 2]),  # 9 by two: 5, 4
        (8, 2, INTERLEAVED, [2, 3, 2, 1]),
        (8, 2, INTERLEAVED | less(2, 2) | {"pipeline_parallel_layers_per_stage": 3}, [1, 3, 3, 1]),
        (6, 2, INTERLEAVED | less(0, 0) | {"pipeline_parallel_layers_per_stage": 1}, [1] * 6),
        (126, 8, {}, [15, 16, 16, 16, 16, 16, 16, 15]),  # Llama 3 405B: 128 by eight
    ],
)
def test_layers_are_distributed_over_stages(
    layers: int, degree: int, settings: dict[str, Any], sizes: list[int]
) -> None:
    section = ParallelismSection(pipeline_parallel_degree=degree, **settings)
    stages = stage_layout(model(layers), PLAN, section)
    numbers = iter(range(layers))
    expected = [[f"layers.{next(numbers)}" for _ in range(size)] for size in sizes]
    expected[0] = ["embedding", *expected[0]]
    expected[-1] = [*expected[-1], "norm", "output"]
    assert stages.modules == expected


@pytest.mark.parametrize(
    ("schedule", "ranks"),
    [("1F1B", [0, 1]), ("Interleaved1F1B", [0, 1, 0, 1]), ("ZBVZeroBubble", [0, 1, 1, 0])],
)
def test_ranks_take_turns_or_run_both_ends_of_a_v(schedule: str, ranks: list[int]) -> None:
    section = ParallelismSection(pipeline_parallel_degree=2, pipeline_parallel_schedule=schedule)
    assert stage_layout(model(8), PLAN, section).ranks == ranks


def names(module: nn.Module) -> dict[str, bool]:
    """Name of each child -> whether it is there."""
    return {name: child is not None for name, child in module._modules.items()}


class Listed(nn.Module):
    """As most models are written: a ModuleList, ends beside it, and modules without parameters."""

    def __init__(self, container: type[nn.Module] = nn.ModuleList) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(4, 2), nn.Embedding(4, 2)
        self.dropout = nn.Dropout()
        layers = [nn.Linear(2, 2) for _ in range(4)]
        self.layers = container(*layers) if container is nn.Sequential else container(layers)
        self.head = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 4))


ENDS = ParallelPlan(
    block="layers.*", stages=Stages(first=["{embedding,positions}"], layers="layers", last=["head"])
)


@pytest.mark.parametrize("container", [nn.ModuleList, nn.Sequential])
def test_a_stage_iterates_its_layers_and_lacks_the_other_ends(container: type[nn.Module]) -> None:
    whole = Listed(container)
    stages = stage_layout(whole, ENDS, ParallelismSection(pipeline_parallel_degree=2))
    assert stages.modules == [
        ["embedding", "positions", "layers.0", "layers.1"],
        ["layers.2", "layers.3", "head"],
    ]
    first, last = (cut(whole, stages, keep) for keep in stages.modules)
    assert names(first) == {
        "embedding": True, "positions": True, "dropout": True, "layers": True, "head": False,
    }  # fmt: skip
    assert names(last) == {
        "embedding": False, "positions": False, "dropout": True, "layers": True, "head": True,
    }  # fmt: skip
    assert first.head is None
    for part, kept in ((first, ["0", "1"]), (last, ["2", "3"])):
        assert [type(layer) for layer in part.layers] == [nn.Linear, nn.Linear]
        assert len(part.layers) == 2
        assert list(part.layers._modules) == kept  # so that names are those of the whole model
    assert [name for name, _ in last.named_parameters()][:2] == ["layers.2.weight", "layers.2.bias"]


def test_ends_and_layers_inside_a_module_dict() -> None:
    """As in nanoGPT: everything but the output is in one ModuleDict."""
    whole = nn.Module()
    whole.transformer = nn.ModuleDict(
        {
            "wte": nn.Embedding(4, 2),
            "h": nn.ModuleList(nn.Linear(2, 2) for _ in range(2)),
            "f": nn.LayerNorm(2),
        }
    )
    whole.lm_head = nn.Linear(2, 4)
    plan = ParallelPlan(
        block="transformer.h.*",
        stages=Stages(first=["transformer.wte"], layers="transformer.h", last=["transformer.f", "lm_head"]),
    )
    stages = stage_layout(whole, plan, ParallelismSection(pipeline_parallel_degree=2))
    first, last = (cut(whole, stages, keep) for keep in stages.modules)
    assert first.lm_head is None
    assert first.transformer.f is None
    assert last.transformer.wte is None
    assert [len(part.transformer.h) for part in (first, last)] == [1, 1]


def test_an_end_that_is_a_list_is_empty_elsewhere() -> None:
    whole = Listed()
    whole.head = nn.ModuleList([nn.Linear(2, 4)])
    stages = stage_layout(whole, ENDS, ParallelismSection(pipeline_parallel_degree=2))
    first = cut(whole, stages, stages.modules[0])
    assert list(first.head) == []


def test_a_layer_that_is_used_twice_is_in_the_stage_twice() -> None:
    whole = Listed()
    whole.layers[1] = whole.layers[0]
    stages = stage_layout(whole, ENDS, ParallelismSection(pipeline_parallel_degree=2))
    first, last = (cut(whole, stages, keep) for keep in stages.modules)
    assert first.layers[0] is first.layers[1]
    assert len(first.layers) == len(last.layers) == 2


def test_modules_of_the_users_own_stages() -> None:
    whole = Listed()
    given = [["embedding", "positions"], ["layers"], ["head.0"], ["head.1"]]
    section = ParallelismSection(pipeline_parallel_degree=4, module_fqns_per_model_part=given)
    stages = stage_layout(whole, ENDS, section)
    parts = [cut(whole, stages, keep) for keep in stages.modules]
    assert [len(part.layers) for part in parts] == [0, 4, 0, 0]
    assert [[type(one) for one in part.head] for part in parts] == [[], [], [nn.LayerNorm], [nn.Linear]]
    assert isinstance(stages, StageLayout)
