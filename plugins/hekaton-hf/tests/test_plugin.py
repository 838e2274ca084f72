"""The plugin keeps the rules."""

from hekaton.testing import check_plugin


def test_the_plugin_keeps_the_rules() -> None:
    check_plugin("hekaton_hf")
