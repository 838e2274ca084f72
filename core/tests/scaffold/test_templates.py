"""The templates of ``hekaton new`` are a plugin, which keeps the contract of every kind."""

import pytest

from hekaton.testing.conformance import cases_of


def test_conforms(hekaton_conformance):
    hekaton_conformance("hekaton.scaffold.templates", processes=1)


@pytest.mark.slow
def test_conforms_on_two_processes(hekaton_conformance):
    hekaton_conformance("hekaton.scaffold.templates", "--template_evaluation.every", "3", processes=2)


def test_rules_and_hooks_conform_by_a_run_file_where_no_other_model_is_installed(tmp_path, monkeypatch):
    file = tmp_path / "run.toml"
    file.write_text(
        '[plugins]\nload = ["hekaton.testing.small_decoder"]\n'
        '[model]\nname = "small_decoder"\nflavor = "tiny"\ntokenizer = "byte"\n'
    )
    monkeypatch.setenv("HEKATON_DISABLE", "llama3")
    cases = cases_of("hekaton.scaffold.templates", [str(file)], only=["rule", "run hooks"])
    assert len(cases) == 2
    for case in cases:
        case.check()
