"""Strings rot: every object that an installed plugin names is loaded, every hook is documented and used."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from hekaton.contributions import Component, Contribution, Ref
from hekaton.plugins import CONTRIBUTION_HOOKS, Plugins, hookspecs, kind_name
from hekaton.spec import TrainSpec

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
PLUGINS = Plugins.discover()
RECORDS = [(info.name, record) for info in PLUGINS.infos for record in PLUGINS.contributions(info)]
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("hekaton_")}


def test_every_plugin_of_the_repository_is_installed_and_loads(first_party_plugins):
    loaded = {info.name: (info.distribution, info.status, info.reason) for info in PLUGINS.infos}
    expected = {name: (distribution, "ok", "") for name, distribution in first_party_plugins.items()}
    assert {name: loaded.get(name) for name in expected} == expected
    assert PLUGINS.problems == []


@pytest.mark.parametrize(
    "record", [pytest.param(record, id=f"{kind_name(type(record))}-{record.name}") for _, record in RECORDS]
)
def test_every_ref_of_every_record_loads(record):
    refs = {
        field.name: value
        for field in dataclasses.fields(record)
        if isinstance(value := getattr(record, field.name), Ref)
    }
    assert refs
    for name, ref in refs.items():
        loaded = ref.load()
        assert callable(loaded) or isinstance(loaded, TrainSpec), f"{name} is {loaded!r}"


@pytest.mark.parametrize("record", [record for _, record in RECORDS], ids=lambda record: record.name)
def test_every_record_has_a_summary_and_its_section_exists(record: Contribution):
    assert record.summary
    if isinstance(record, Component) and record.section:
        assert PLUGINS.section_of(record) == record.section


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented(name):
    hook = HOOKS[name]
    text = inspect.getdoc(hook) or ""
    assert text.split("\n\n")[0].endswith(".")
    if name in CONTRIBUTION_HOOKS:
        assert ":returns: one record per" in text
        assert ":raises PluginError:" in text
    for parameter in inspect.signature(hook).parameters:
        assert f":param {parameter}:" in text
    documented = re.findall(r":param (\w+):", text)
    assert documented == list(inspect.signature(hook).parameters)


def test_every_contribution_hook_has_a_contribution():
    """First-party, or that of the third-party package, which test_third_party_package.py runs."""
    third_party = set(re.findall(r"^def (hekaton_\w+)", TUTORIAL.read_text(), re.M))
    first_party = {type(record) for _, record in RECORDS}
    unused = {hook for hook, kind in CONTRIBUTION_HOOKS.items() if kind not in first_party}
    assert unused - third_party == set()
