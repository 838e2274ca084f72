"""Rules of recomputation and overlap that need no model."""

from __future__ import annotations

import pytest

from hekaton.errors import ConfigErrors
from hekaton.rules import check, compilation


@pytest.fixture
def violations(load_run):
    def violations(toml: str, *, device_type: str = "cpu") -> list[str]:
        try:
            check(load_run(toml), world_size=None, device_type=device_type)
        except ConfigErrors as e:
            return [str(problem) for problem in e.problems]
        return []

    return violations


BUDGET = '[activation_checkpoint]\nmode = "memory_budget"\n'


def test_a_memory_budget_needs_compilation(violations):
    (message,) = violations(BUDGET)
    assert message == (
        'activation_checkpoint.mode = "memory_budget" needs compilation of the model\n  from: run.toml, line 2\n'
        '  set compile.enable = true, with "model" in compile.components'
    )
    (message,) = violations(BUDGET + '[compile]\nenable = true\ncomponents = ["loss"]\n')
    assert "needs compilation of the model" in message


def test_a_memory_budget_needs_a_compiler_that_recomputes(violations):
    (message,) = violations(BUDGET + '[compile]\nenable = true\nbackend = "eager"\n')
    assert message.startswith(
        'activation_checkpoint.mode = "memory_budget" has no effect with compile.backend = "eager"'
    )


def test_a_memory_budget_with_a_compiler_is_accepted(violations):
    assert violations(BUDGET + '[compile]\nenable = true\nbackend = "aot_eager"\n') == []


def test_charts_need_matplotlib(violations, monkeypatch):
    toml = BUDGET + 'visualize_memory_budget_pareto = true\n[compile]\nenable = true\nbackend = "aot_eager"\n'
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    assert violations(toml) == [
        "activation_checkpoint.visualize_memory_budget_pareto needs matplotlib\n  from: run.toml, line 3\n"
        "  pip install matplotlib"
    ]
    monkeypatch.setattr(compilation, "find_spec", lambda name: name)
    assert violations(toml) == []


# Nothing is contributed that could be cut, so the plan's own violation is there as well; it is of no interest.
ASYNC = "[parallelism]\nenable_async_tensor_parallel = true\n"


@pytest.mark.parametrize(
    ("toml", "device_type", "reasons"),
    [
        (ASYNC, "cuda", ["parallelism.tensor_parallel_degree above 1", "compilation of the model (compile.enable)"]),
        (ASYNC + "[compile]\nenable = true\n", "cuda", ["parallelism.tensor_parallel_degree above 1"]),
        (
            ASYNC + '[compile]\nenable = true\nbackend = "aot_eager"\n',
            "cpu",
            [
                "parallelism.tensor_parallel_degree above 1",
                'compile.backend = "inductor"',
                "CUDA; this run is on cpu",
            ],
        ),
    ],
)  # fmt: skip
def test_async_tensor_parallel_names_what_it_needs(violations, toml, device_type, reasons):
    assert [message.splitlines()[0] for message in violations(toml, device_type=device_type)] == [
        f"parallelism.enable_async_tensor_parallel needs {reason}" for reason in reasons
    ]
