"""The checks that hekaton's own plugins and models pass, for the tests of everybody else's.

    from hekaton.testing import check_adapter, check_converter, check_encoder, check_layouts, check_model
    from hekaton.testing import check_objective, check_optimizer, check_order, check_plugin, check_row_maker
    from hekaton.testing import check_requirement, check_rule, check_run_hooks, run_command

    def test_plugin():
        check_plugin("my_package")

    def test_without_what_it_needs():
        check_requirement("some_package>=2", too_old="1.9", without=["run.toml"], using=["other.toml"])

    def test_model():
        check_model(train_spec, flavor="tiny")

    def test_adapter():
        check_adapter(adapter, train_spec)

    def test_objective():
        check_objective(objective, batch, seq_len=16, model=model)

    def test_converter():
        check_converter(MyConverter(section, dims), train_spec, "tiny")

    def test_optimizer():
        check_optimizer(build)

    def test_data():
        check_order(order, documents=100)
        check_encoder(encoder, documents)
        check_row_maker(maker, documents, encoder)
        check_dataset(dataset, encoder)
        check_tokenizer(tokenizer, ["some text", "another"])
        check_schedule(build_schedule)
        check_logger(build_logger)

    def test_rule():
        assert check_rule(rule, "--my.field", "3") == []

    def test_run_hooks():
        assert check_run_hooks("my_package", metrics=[{"loss": 3.0}, {"loss": 1.9}])[-1].stop

    def test_layouts():
        check_layouts("run.toml", "--model.flavor", "tiny")

    def test_a_run(tmp_path):
        assert run_command("train", "run.toml", processes=4, cwd=tmp_path).returncode == 0

:func:`run_processes` calls a function on several real processes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hekaton.testing.adapter import check_adapter
    from hekaton.testing.buffers import check_buffers
    from hekaton.testing.converter import check_converter
    from hekaton.testing.data import (
        check_dataset,
        check_encoder,
        check_order,
        check_row_maker,
        check_tokenizer,
    )
    from hekaton.testing.launcher import run_command, run_processes, start_command, start_function
    from hekaton.testing.layouts import check_layouts
    from hekaton.testing.logger import check_logger
    from hekaton.testing.model import check_model
    from hekaton.testing.model_layouts import check_before_step
    from hekaton.testing.objective import check_objective
    from hekaton.testing.optimizer import check_optimizer
    from hekaton.testing.plugin import check_plugin
    from hekaton.testing.requirement import check_requirement
    from hekaton.testing.rule import check_rule
    from hekaton.testing.run_hooks import check_run_hooks
    from hekaton.testing.schedule import check_schedule

__all__ = [
    "check_adapter", "check_before_step", "check_buffers", "check_converter", "check_dataset",
    "check_encoder", "check_layouts", "check_logger", "check_model", "check_objective", "check_optimizer",
    "check_order", "check_plugin", "check_requirement", "check_row_maker", "check_rule", "check_run_hooks",
    "check_schedule", "check_tokenizer", "run_command", "run_processes", "start_command", "start_function",
]  # fmt: skip

_PLACES = {
    "check_adapter": "adapter",
    "check_before_step": "model_layouts",
    "check_buffers": "buffers",
    "check_converter": "converter",
    "check_dataset": "data",
    "check_encoder": "data",
    "check_layouts": "layouts",
    "check_logger": "logger",
    "check_model": "model",
    "check_objective": "objective",
    "check_optimizer": "optimizer",
    "check_order": "data",
    "check_plugin": "plugin",
    "check_requirement": "requirement",
    "check_row_maker": "data",
    "check_rule": "rule",
    "check_run_hooks": "run_hooks",
    "check_schedule": "schedule",
    "check_tokenizer": "data",
    "run_command": "launcher",
    "run_processes": "launcher",
    "start_command": "launcher",
    "start_function": "launcher",
}
"""Name -> the module that has it. They are imported when they are used: pytest imports this package in every
run, for its plugin, and most of them import torch."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value
