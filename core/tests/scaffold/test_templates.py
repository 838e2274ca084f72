"""The templates of ``hekaton new`` are a plugin, which keeps the contract of every kind."""

import pytest


def test_conforms(hekaton_conformance):
    hekaton_conformance("hekaton.scaffold.templates", processes=1)


@pytest.mark.slow
def test_conforms_on_two_processes(hekaton_conformance):
    hekaton_conformance("hekaton.scaffold.templates", "--template_evaluation.every", "3", processes=2)
