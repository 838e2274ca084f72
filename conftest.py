"""For the tests of all packages."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from hekaton.testing.process import FRESH

TOGETHER = {"tests/test_third_party_package.py": "tests/test_wheels.py"}
"""Files that run on the same worker of pytest-xdist as another: they share an environment of a gigabyte."""

LONGEST = (
    "tests/distributed/test_layouts.py",
    "tests/distributed/test_draws.py",
    "tests/test_wheels.py",
    "tests/test_versions.py",
    "tests/test_random_configurations.py",
    "tests/test_gpu_benchmark.py",
    "tests/distributed/test_experts.py",
    "model_zoo/deepseek_v3/tests/test_training.py",
)
"""Files that pytest-xdist starts with, so that no worker is left with one of them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """The fixture ``hekaton_conformance``, also where hekaton was installed without that entry point."""
    from hekaton.testing import pytest_plugin

    if not config.pluginmanager.is_registered(pytest_plugin):
        config.pluginmanager.register(pytest_plugin, "hekaton")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked ``cuda`` that need more devices than there are; put the longest files first."""
    items.sort(key=lambda item: _place(item.nodeid))
    if not any(item.get_closest_marker("cuda") for item in items):
        return
    import torch

    there = torch.cuda.device_count()
    left_out = [
        item
        for item in items
        if (mark := item.get_closest_marker("cuda")) and mark.kwargs.get("devices", 1) > there
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Thousands of tests and what they import stay until the end; looking through them for garbage again and
    again took up to a fifth of the time of short tests."""
    gc.collect()
    gc.freeze()


def _place(nodeid: str) -> int:
    file = TOGETHER.get(nodeid.partition("::")[0], nodeid.partition("::")[0])
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)


@pytest.fixture(autouse=True)
def hekaton_log() -> Iterator[logging.Logger]:
    """The logger ``hekaton``, and afterwards as it was: a run in the test's process sets it up."""
    log = logging.getLogger("hekaton")
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    yield log
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of pytest-xdist: a worker runs whole files, since the cases of a file share processes."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return ByFile(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells why test processes were fresh interpreters, which take seconds longer to start."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["fresh"] = dict(FRESH)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    FRESH.update(getattr(node, "workeroutput", {}).get("fresh", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for why, processes in sorted(FRESH.items()):
        terminalreporter.write_line(f"{processes} test processes were fresh interpreters: {why}")
