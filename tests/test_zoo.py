"""Every installed model and plugin passes the checks that we offer to plugin authors."""

from __future__ import annotations

import pytest

from hekaton.contributions import HFAdapter, Model
from hekaton.plugins import Plugins
from hekaton.testing import check_adapter, check_model, check_plugin

PLUGINS = Plugins.discover()


def test_there_are_models():
    assert "llama3" in PLUGINS.all(Model)


@pytest.mark.parametrize("name", PLUGINS.all(Model))
def test_model(name):
    check_model(PLUGINS.get(Model, name).spec.load())


@pytest.mark.parametrize("name", PLUGINS.all(HFAdapter))
def test_adapter(name):
    check_adapter(PLUGINS.get(HFAdapter, name), PLUGINS.get(Model, name).spec.load())


@pytest.mark.parametrize("module", [info.module for info in PLUGINS.infos])
def test_plugin(module):
    check_plugin(module)
