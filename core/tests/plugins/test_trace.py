"""``HEKATON_TRACE=1``, and warnings of what is deprecated."""

from __future__ import annotations

import warnings

import pytest

from hekaton.plugins import Plugins, deprecations

PLUGIN = """
    HEKATON_API = ">=1,<2"

    @hookimpl
    def hekaton_models():
        return [Model("tiny", spec=Ref("a:b"), summary="small")]

    @hookimpl
    def hekaton_step_ended(step, metrics):
        if step == 3:
            raise ValueError("three")
"""


@pytest.fixture
def traced(install, monkeypatch):
    install("mine", PLUGIN)
    monkeypatch.setenv("HEKATON_TRACE", "1")
    return Plugins.discover()


def test_each_hook_call_is_printed_with_what_it_returned(traced, capsys):
    Plugins.discover()
    printed = capsys.readouterr().err
    assert "trace: hekaton_models of plugin 'mine' returned [Model 'tiny'] in " in printed
    assert "trace: hekaton_optimizers of plugin 'builtin' returned [Optimizer 'AdamW', " in printed
    assert traced.call("hekaton_step_ended", step=1, metrics={}, control=None) == []
    assert "trace: hekaton_step_ended of plugin 'mine' returned nothing in " in capsys.readouterr().err


def test_what_a_hook_raises_is_printed_and_raised(traced, capsys):
    with pytest.raises(ValueError, match="three"):
        traced.call("hekaton_step_ended", step=3, metrics={}, control=None)
    assert "of plugin 'mine' raised ValueError: three in " in capsys.readouterr().err


def test_without_the_variable_nothing_is_printed(install, monkeypatch, capsys):
    install("mine", PLUGIN)
    for value in ("", "0"):
        monkeypatch.setenv("HEKATON_TRACE", value)
        Plugins.discover().call("hekaton_step_ended", step=1, metrics={}, control=None)
    assert capsys.readouterr().err == ""


def test_one_of_several_processes_says_which_it_is(traced, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    traced.call("hekaton_step_ended", step=1, metrics={}, control=None)
    assert capsys.readouterr().err.splitlines()[-1].startswith("rank 1: trace: hekaton_step_ended of ")


def test_what_is_deprecated_is_a_warning_once_that_names_the_plugin(install, monkeypatch):
    install("mine", PLUGIN)
    old = deprecations.Deprecation(since="1.1", removed="1.3", instead="hekaton_after_step")
    monkeypatch.setitem(deprecations.HOOKS, "hekaton_step_ended", old)
    monkeypatch.setitem(
        deprecations.FIELDS, ("Model", "summary"), deprecations.Deprecation("1.1", "1.3", "its docstring")
    )
    deprecations._warn.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Plugins.discover()
        Plugins.discover()
    said = sorted(str(one.message) for one in caught if "plugin 'mine'" in str(one.message))
    assert said == [
        "plugin 'mine' (distribution mine 1.2) uses 'summary' of Model 'tiny': deprecated in plugin API 1.1, "
        "removed in 1.3; use its docstring",
        "plugin 'mine' (distribution mine 1.2) uses the hook 'hekaton_step_ended': deprecated in plugin API 1.1, "
        "removed in 1.3; use hekaton_after_step",
    ]
