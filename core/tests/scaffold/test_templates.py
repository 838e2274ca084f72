"""The templates of ``hekaton new`` are a plugin, which keeps the contract of every kind."""


def test_conforms(hekaton_conformance):
    hekaton_conformance("hekaton.scaffold.templates")
