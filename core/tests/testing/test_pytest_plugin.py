"""The fixture ``hekaton_conformance``: a test for each promise, in a run of pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
from hekaton.contributions import LRSchedule, Order, Ref, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_lr_schedules():
    return [LRSchedule("flat", build=Ref("small:flat"), summary="1"),
            LRSchedule("wrong", build=Ref("small:wrong"), summary="-1")]


def flat(section, settings, training_steps):
    return lambda steps_done: 1.0


def wrong(section, settings, training_steps):
    return lambda steps_done: -1.0
"""

CONFTEST = """
def pytest_configure(config):
    from hekaton.testing import pytest_plugin

    if not config.pluginmanager.is_registered(pytest_plugin):
        config.pluginmanager.register(pytest_plugin, "hekaton")
"""
"""For a core that was installed without the entry point; tests/test_third_party_package.py has one with it."""


def run(folder: Path, test: str, *arguments: str) -> str:
    (folder / "small.py").write_text(PLUGIN)
    (folder / "test_small.py").write_text(test)
    (folder / "test_more.py").write_text("def test_more(hekaton_conformance, tmp_path):\n    pass\n")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    return done.stdout


@pytest.mark.slow
def test_each_promise_is_a_test_and_what_fails_names_its_line(tmp_path):
    printed = run(
        tmp_path,
        "def test_conforms(hekaton_conformance):\n"
        "    hekaton_conformance('small', only=['factors'], without={'plugin small': 'not today'})\n"
        "def test_rules(hekaton_conformance):\n"
        "    hekaton_conformance('small', only=['rules'], without={'plugin small': 'not today'})\n",
        "--continue-on-collection-errors",
    )
    assert "test_conforms[lr schedule flat:factors] PASSED" in printed
    assert "test_conforms[lr schedule wrong:factors] FAILED" in printed
    assert "the factor after 0 steps is -1.0" in printed
    assert "the contract (docs/contracts/lr-schedule.md#factors):" in printed
    assert "test_rules[plugin small:rules] SKIPPED (not today)" in printed
    assert "test_more must take hekaton_conformance and no other fixture" in printed


def test_pytest_imports_nothing_heavy_for_it():
    code = "import sys, hekaton.testing.pytest_plugin; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_every_name_of_the_kit_is_found_where_it_is_said_to_be():
    from hekaton import testing

    assert set(testing._PLACES) == set(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__module__.startswith("hekaton.testing")
