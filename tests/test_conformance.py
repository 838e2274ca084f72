"""Our own distributions keep the promises of their kinds, by the fixture that others use, as far as one process tells."""

from __future__ import annotations

import pytest

from hekaton.plugins import Plugins
from hekaton.testing.conformance import PROMISES, cases_of

QUICK = [
    "rules", "fields", "rule", "help", "values", "style", "table", "factors", "epochs", "ids", "round trip", "metrics",
    "failure", "rows", "steps", "draft",
]  # fmt: skip
WITHOUT = {
    "hekaton-hf": {
        "tokenizer hf": "reads the files of a tokenizer: plugins/hekaton-hf/tests/test_tokenizer.py"
    },
    "hekaton-mlflow": {"logger mlflow": "opens a store: plugins/hekaton-mlflow/tests"},
    "hekaton-wandb": {"logger wandb": "starts a service: plugins/hekaton-wandb/tests"},
    "hekaton-float8": {
        "converter quantize.grouped_mm.float8: draft": "is for experts: plugins/hekaton-float8/tests"
    },
    "hekaton-lora": {
        "checkpoint format peft": "writes adapters alone: plugins/hekaton-lora/tests/test_peft.py"
    },
    "hekaton-mx": {"converter quantize.grouped_mm.mx: draft": "is for experts: plugins/hekaton-mx/tests"},
    "hekaton-flux": {
        "row maker images: rows": "takes images: model_zoo/flux/tests/test_images.py",
        "checkpoint format flux_file: round trip": "holds the model alone: model_zoo/flux/tests",
    },
}
OURS = sorted(
    {info.distribution for info in Plugins.discover().infos if info.distribution.startswith("hekaton")}
)


def test_conforms(hekaton_conformance):
    for distribution in OURS:
        hekaton_conformance(distribution, only=QUICK, without=WITHOUT.get(distribution))


def test_every_promise_is_on_the_page_that_it_names(repository):
    for promise in PROMISES:
        page, _, heading = promise.place.partition("#")
        text = (repository / page).read_text(encoding="utf-8")
        assert f"\n### {heading.replace('-', ' ')}\n\n{promise.says}\n" in text, promise.place


def test_a_broken_promise_names_its_line():
    (case,) = [case for case in cases_of("hekaton-llama3") if case.name == "model llama3: tables"]
    object.__setattr__(case.subject, "spec", None)
    with pytest.raises(AssertionError) as error:
        case.check()
    assert str(error.value).startswith("model llama3: tables: ")
    assert "the contract (docs/contracts/model.md#tables):\n  Plan, initial values" in str(error.value)


def test_a_name_that_is_not_there_is_an_error_with_the_nearest():
    from hekaton.errors import PluginError

    with pytest.raises(PluginError, match="there is no plugin 'hekaton-lama3'") as error:
        cases_of("hekaton-lama3")
    assert "did you mean 'hekaton-llama3'" in error.value.hint
    with pytest.raises(PluginError, match="there is no case 'model llama3: tabels'") as error:
        cases_of("hekaton-llama3", without={"model llama3: tabels": "later"})
    assert "model llama3: tables" in error.value.hint
