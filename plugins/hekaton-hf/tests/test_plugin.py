"""The plugin keeps the rules."""

from hekaton.testing import check_plugin


def test_contract() -> None:
    check_plugin("hekaton_hf")
