"""The checks that hekaton's own plugins and models pass, for the tests of everybody else's.

    from hekaton.testing import check_adapter, check_layouts, check_model, check_objective
    from hekaton.testing import check_plugin, run_command

    def test_plugin():
        check_plugin("my_package")

    def test_model():
        check_model(train_spec, flavor="tiny")

    def test_adapter():
        check_adapter(adapter, train_spec)

    def test_objective():
        check_objective(objective, batch, seq_len=16, model=model)

    def test_layouts():
        check_layouts("run.toml", "--model.flavor", "tiny")

    def test_a_run(tmp_path):
        assert run_command("train", "run.toml", processes=4, cwd=tmp_path).returncode == 0

:func:`run_processes` calls a function on several real processes.
"""

from hekaton.testing.adapter import check_adapter
from hekaton.testing.launcher import run_command, run_processes, start_command, start_function
from hekaton.testing.layouts import check_layouts
from hekaton.testing.model import check_model
from hekaton.testing.objective import check_objective
from hekaton.testing.plugin import check_plugin

__all__ = [
    "check_adapter", "check_layouts", "check_model", "check_objective", "check_plugin", "run_command",
    "run_processes", "start_command", "start_function",
]  # fmt: skip
