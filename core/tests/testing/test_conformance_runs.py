"""Which runs the kit starts: those that the promises of a kind compare, with the sizes of the run that it is given."""

from __future__ import annotations

import itertools

import pytest

from hekaton.contributions import Model
from hekaton.errors import PluginError
from hekaton.plugins import Plugins, packages
from hekaton.testing.conformance import cases_of, training
from hekaton.testing.conformance.runs import Measured
from hekaton.testing.conformance.subject import SMALL_MODEL, smallest_flavor

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


CONVERTER = "converter template_converter"


def converter_cases(**given):
    return [case for case in cases_of(TEMPLATES, **given) if case.names[1] == CONVERTER]


def test_a_launch_that_fails_is_made_once_for_the_promises_that_share_it(monkeypatch):
    launched = []

    def measure(*arguments, **others):
        launched.append(arguments)
        raise AssertionError("under tp2: wrong")

    monkeypatch.setattr(training, "measure", measure)
    training._run.cache_clear()
    said = "a run that the promises layouts, resume share: under tp2: wrong\n"
    for case in converter_cases()[1:]:
        with pytest.raises(AssertionError, match=f"^{case.name}: {said}"):
            case.check()
    assert len(launched) == 1
    training._run.cache_clear()


@pytest.mark.parametrize("tolerance", [0.01, {CONVERTER: 0.01}, {f"{CONVERTER}: resume": 0.01}])
def test_a_tolerance_is_of_what_is_named(tolerance, monkeypatch):
    steps = {"": [(2.0, 1.0), (2.0, 1.0)], "shard2": [(2.0, 1.0), (2.0, 1.0)]}
    resumed = {("shard2", "tp2"): [(2.0, 1.009)]}
    numbers = Measured(steps=steps, resumed=resumed, shapes={}, played={}, judged={})
    monkeypatch.setattr(training, "_measured", lambda subject: numbers)
    (without,) = [case for case in converter_cases() if case.promise.name == "resume"]
    said = "step 2 is 1.009, on one process 1.0, which differ by 0.009 of it; the tolerance is 1e-09"
    with pytest.raises(AssertionError, match=said):
        without.check()
    draft, layouts, resume = converter_cases(tolerance=tolerance)
    resume.check()
    stated = None if isinstance(tolerance, dict) and CONVERTER not in tolerance else 0.01
    assert draft.subject.tolerance == layouts.subject.tolerance == stated
    resumed["shard2", "tp2"] = [(2.0, 1.011)]
    with pytest.raises(AssertionError, match=r"the tolerance is 0\.01"):
        resume.check()


@pytest.mark.parametrize("number", [0, -0.1, 1, float("nan"), float("inf"), "0.1", None])
def test_a_tolerance_is_a_number_above_0_and_below_1(number):
    with pytest.raises(PluginError, match=f"^a tolerance is .* above 0 and below 1, not {number!r}$"):
        cases_of(TEMPLATES, tolerance={CONVERTER: number})


def test_a_tolerance_where_nothing_is_compared_is_an_error():
    with pytest.raises(PluginError, match=r"^no numbers are compared in 'model template_model: tables'"):
        cases_of(TEMPLATES, tolerance={"model template_model: tables": 0.1})
    with pytest.raises(PluginError, match=r"^no numbers are compared in 'logger template_logger'"):
        cases_of(TEMPLATES, tolerance={"logger template_logger": 0.1})
    with pytest.raises(PluginError, match=r"^no numbers are compared in any of these cases") as error:
        cases_of(TEMPLATES, only=["tables"], tolerance=0.1)
    assert error.value.hint == "leave it out"
    with pytest.raises(PluginError, match=r"^no numbers are compared in 'converter temp'") as error:
        cases_of(TEMPLATES, tolerance={"converter temp": 0.1})
    assert CONVERTER in error.value.hint


def test_without_hekaton_parallel_a_plugin_with_a_style_and_a_strategy_conforms(monkeypatch):
    monkeypatch.setenv("HEKATON_DISABLE", "parallel")
    monkeypatch.setattr(packages, "_is_installed", lambda distribution: distribution != "hekaton-parallel")
    discover = Plugins.discover
    monkeypatch.setattr(Plugins, "discover", lambda **_: discover(load=[TEMPLATES, SMALL_MODEL]))
    draft = converter_cases()[0]
    assert training.claimed_layouts(draft.subject) == ("shard2", "pp2")
    draft.check()  # the model's own styles are not known


def test_an_error_of_a_plugin_is_said_with_its_place(monkeypatch):
    monkeypatch.setattr("hekaton.scaffold.templates.optimizer.build", lambda *_: list(None))
    (case,) = [case for case in cases_of(TEMPLATES) if case.name == "optimizer template_optimizer: steps"]
    said = r"TypeError: 'NoneType' object is not iterable \(test_conformance_runs.py, line \d+\)\n"
    with pytest.raises(AssertionError, match=said):
        case.check()


@pytest.mark.parametrize(
    ("raised", "said"), [(None, "AssertionError"), (SystemExit(3), "SystemExit: 3"), (OSError(), "OSError")]
)
def test_what_a_plugin_raises_without_a_word_is_said(raised, said, monkeypatch):
    def build(*_):
        assert raised is not None
        raise raised

    monkeypatch.setattr("hekaton.scaffold.templates.optimizer.build", build)
    (case,) = [case for case in cases_of(TEMPLATES) if case.name == "optimizer template_optimizer: steps"]
    with pytest.raises(AssertionError, match=rf": {said}.* \(test_conformance_runs.py, line \d+\)\n"):
        case.check()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("raise SystemExit(0)", "is broken: SystemExit: 0"),
        ("import absent_library", "is broken: ModuleNotFoundError: No module named 'absent_library'"),
        ("HEKATON_API = '>=9'", "is incompatible: "),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_said_with_the_reason(content, said, tmp_path, monkeypatch):
    (tmp_path / "lab_that_is_broken.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=rf"^plugin 'lab_that_is_broken' \(unpackaged\) {said}"):
        cases_of("lab_that_is_broken")
    with pytest.raises(PluginError, match="there is no plugin 'lab_that_is_missing'"):
        cases_of("lab_that_is_missing")


def test_a_distribution_with_entry_points_of_another_group_is_said(tmp_path, monkeypatch):
    info = tmp_path / "lab_of_a_group-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-of-a-group\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[hekatons]\nlab = lab_of_a_group\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match="no entry point in the group 'hekaton'") as error:
        cases_of("lab-of-a-group")
    assert "its groups are: hekatons" in error.value.hint


@pytest.mark.parametrize("wrong", ["__len__", "fingerprint"])
def test_a_dataset_that_is_another_when_it_is_opened_again_is_noticed(wrong, monkeypatch):
    numbers = itertools.count(900)
    of = "hekaton.scaffold.templates.dataset.Sums."
    if wrong == "__len__":
        monkeypatch.setattr(f"{of}__len__", lambda self: next(numbers))
    else:
        monkeypatch.setattr(
            f"{of}__setattr__",
            lambda self, name, value: object.__setattr__(
                self, name, f"{value} {next(numbers)}" if name == "fingerprint" else value
            ),
        )
    (case,) = [case for case in cases_of(TEMPLATES) if case.name == "dataset template_dataset: access"]
    with pytest.raises(AssertionError, match="length and fingerprint are "):
        case.check()


FILE = """
import sys
from hekaton.contributions import Command, Ref, hookimpl

HEKATON_API = ">=1,<2"
assert sys.modules.get("torch", "importable") is not None

@hookimpl
def hekaton_run_ended(step, error):
    pass

@hookimpl
def hekaton_commands():
    return [Command("say", run=Ref("lab_of_one_file:say"), summary="Say.")]

def say(arguments):
    print("usage: hekaton say")
"""


def test_a_file_with_hooks_and_a_command_conforms(tmp_path, monkeypatch):
    (tmp_path / "lab_of_one_file.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    cases = cases_of(str(tmp_path / "lab_of_one_file.py"))
    assert [case.promise.name for case in cases] == ["rules", "run hooks", "help"]
    for case in cases:
        case.check()
