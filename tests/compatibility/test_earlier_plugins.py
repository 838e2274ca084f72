"""Plugins that were built for earlier versions of the plugin API, as wheels, are loaded, keep their promises and train."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from hekaton.plugins import CONTRIBUTION_HOOKS, Plugins
from hekaton.testing import run_command
from hekaton.testing.conformance import cases_of

WHEELS = {wheel.name.split("-")[0]: wheel for wheel in Path(__file__).parent.glob("*.whl")}
IN_ANOTHER_INTERPRETER = ("reference", "rules", "help")
"""Promises that are left out here, as are those of several processes: the templates have them."""


@pytest.fixture(params=WHEELS)
def installed(request, tmp_path, monkeypatch):
    """The package of a wheel, in a folder of the path as pip leaves it."""
    zipfile.ZipFile(WHEELS[request.param]).extractall(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield request.param
    for name in [name for name in sys.modules if name.partition(".")[0] == request.param]:
        del sys.modules[name]


def test_there_is_one_of_the_first_version():
    assert "hekaton_of_api_1_0" in WHEELS
    assert WHEELS["hekaton_of_api_1_0"].stat().st_size < 40_000


def test_it_contributes_every_kind(installed):
    plugins = Plugins.discover()
    (info,) = [info for info in plugins.infos if info.module == installed]
    assert (info.status, info.version) == ("ok", "1.0"), info.reason
    kinds = {type(record) for record in plugins.contributions(info)}
    if installed == "hekaton_of_api_1_0":
        assert kinds == set(CONTRIBUTION_HOOKS.values())
    assert plugins.lifecycle_hooks(info)


def test_it_keeps_its_promises(installed):
    cases = [
        case
        for case in cases_of(installed)
        if case.promise.processes == 1 and case.promise.name not in IN_ANOTHER_INTERPRETER
    ]
    assert len(cases) > 20
    for case in cases:
        case.check()


def test_it_trains(installed, tmp_path):
    run = tmp_path / installed / "run.toml"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run_command("train", str(run), "--training.steps", "2", cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "step      2  loss" in done.stderr
