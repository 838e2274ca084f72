"""Rules that plugins contribute: they yield violations and notices as the core's own do."""

import pytest

from hekaton.config import load
from hekaton.errors import ConfigErrors
from hekaton.rules import check

PLUGIN = """
from hekaton.contributions import Check, Ref, hookimpl


def steps_are_even(run):
    steps = run.config.training.steps
    if steps == 6:
        yield "six steps are few"
    elif steps % 2:
        yield run.violation(f"training.steps = {steps} is odd", "training.steps", hint="choose an even number")


@hookimpl
def hekaton_checks():
    return [Check("even", rule=Ref("even_steps:steps_are_even"), summary="steps are even")]
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    plugin = tmp_path_factory.mktemp("plugin") / "even_steps.py"
    plugin.write_text(PLUGIN)

    def run(steps):
        loaded = load([], ["--plugins.load", str(plugin), "--training.steps", str(steps)])
        return check(loaded, world_size=1, device_type="cpu")

    return run


def test_a_contributed_rule_is_broken(checked):
    with pytest.raises(ConfigErrors) as caught:
        checked(5)
    (problem,) = caught.value.problems
    assert str(problem) == "training.steps = 5 is odd\n  from: --training.steps\n  choose an even number"


def test_a_contributed_rule_gives_a_notice(checked):
    assert "six steps are few" in checked(6)
    assert "six steps are few" not in checked(8)
