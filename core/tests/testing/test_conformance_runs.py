"""Which runs the kit starts: those that the promises of a kind compare, with the sizes of the run that it is given."""

from __future__ import annotations

import pytest

from hekaton.contributions import Model
from hekaton.testing.conformance import cases_of, training
from hekaton.testing.conformance.subject import smallest_flavor

TEMPLATES = "hekaton.scaffold.templates"


class Started(Exception):
    """Instead of the runs."""


@pytest.fixture
def asked(monkeypatch):
    """What the last measurement was asked for."""
    found = {}

    def measure(arguments, layouts, **others):
        found.update(others, arguments=arguments, layouts=layouts)
        raise Started

    monkeypatch.setattr(training, "measure", measure)
    training._run.cache_clear()
    yield found
    training._run.cache_clear()


@pytest.mark.parametrize(
    ("name", "promise", "resume", "dry_run", "layouts"),
    [
        ("model template_model", "layouts", True, True, ("shard2", "tp2", "cp2", "pp2")),
        ("converter template_converter", "layouts", True, False, ("shard2", "tp2")),
        ("optimizer template_optimizer", "resume", True, False, ("shard2", "tp2")),
        ("objective template_objective", "layouts", False, False, ("shard2", "tp2")),
        ("evaluation template_evaluation", "numbers", False, False, ("shard2", "tp2")),
        ("context parallel template_context", "attention", False, False, ("cp2",)),
    ],
)
def test_only_runs_that_the_kind_promises_are_started(name, promise, resume, dry_run, layouts, asked):
    (case,) = [case for case in cases_of(TEMPLATES) if case.name == f"{name}: {promise}"]
    with pytest.raises(AssertionError, match="Started"):
        case.check()
    assert (asked["resume"], asked["dry_run"], asked["layouts"]) == (resume, dry_run, layouts)


def test_the_sizes_of_the_run_are_those_of_every_promise():
    sizes = ["--model.overrides", '{"dim": 16, "n_heads": 1}']
    subjects = [case.subject for case in cases_of(TEMPLATES, sizes) if isinstance(case.subject.record, Model)]
    (model,) = {id(one): one for one in subjects}.values()
    config = model.spec_of_run.flavors[model.flavor]
    assert (config.dim, config.n_heads) == (16, 1)
    assert model.spec.flavors[smallest_flavor(model.spec)].dim > 16
    # One head is not cut in two.
    assert training.claimed_layouts(model) == ("shard2", "cp2", "pp2")
