"""Which layers each pipeline stage gets, against sizes worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from hekaton.config.sections import ParallelismSection
from hekaton.parallel.pipeline import stage_layout
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
def test_layers_are_dealt_out(layers: int, degree: int, settings: dict[str, Any], sizes: list[int]) -> None:
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
