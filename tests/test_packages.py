"""The table of what the distributions of this repository contribute is what they contribute."""

from __future__ import annotations

from collections import defaultdict

import pytest

from hekaton.cli import main
from hekaton.plugins import CONTRIBUTION_HOOKS, Plugins, kind_name, manager, packages
from hekaton.plugins.packages import CONVERTERS, NAMES, install_hint


def test_the_table_is_what_the_plugins_contribute(first_party_plugins):
    discovered = Plugins.discover()
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for kind in CONTRIBUTION_HOOKS.values():
        for name, contributed in discovered.all(kind).items():
            distribution = contributed.plugin.distribution
            if distribution in first_party_plugins.values() and distribution != "hekaton":
                found[distribution][kind_name(kind)].add(name)
    table = {
        distribution: {kind: set(names) for kind, names in kinds.items()}
        for distribution, kinds in NAMES.items()
    }
    assert table == {distribution: dict(kinds) for distribution, kinds in found.items()}


@pytest.fixture
def without(monkeypatch):
    """Leave distributions out, as if they were not installed."""
    found = manager.installed()

    def without(*names: str) -> None:
        others = [(entry, info) for entry, info in found if info.distribution not in names]
        monkeypatch.setattr(manager, "installed", lambda: others)
        monkeypatch.setattr(packages, "_is_installed", lambda name: name not in names)

    return without


@pytest.mark.parametrize(
    ("words", "unknown", "distribution"),
    [
        (["config", "check", "--model.name", "llama3"], "unknown model 'llama3'", "hekaton-llama3"),
        (["config", "check", "--model.tokenizer", "hf"], "unknown tokenizer 'hf'", "hekaton-hf"),
        (["config", "check", "--training.dataset", "text"], "unknown dataset 'text'", "hekaton-hf"),
        (
            ["config", "check", "--metrics.enable_tensorboard"],
            "unknown logger 'tensorboard'",
            "hekaton-tensorboard",
        ),
        (["download", "org/model"], "unknown command 'download'", "hekaton-hf"),
    ],
)
def test_an_error_says_which_package_to_install(without, capsys, words, unknown, distribution):
    without("hekaton-hf", "hekaton-llama3", "hekaton-tensorboard")
    assert main(words) == 2
    message = capsys.readouterr().err
    name = unknown.split("'")[1]
    assert unknown in message
    assert f"  '{name}' comes with {distribution}: pip install {distribution}\n" in message


def test_no_package_is_named_that_is_installed():
    assert install_hint("model", "llama3") == ""
    assert install_hint("model", "nothing") == ""


def test_no_converter_is_called_what_it_was_called_before():
    assert not set(CONVERTERS) & set(CONVERTERS.values())
