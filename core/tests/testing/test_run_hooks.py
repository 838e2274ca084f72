"""The conformance kit finds what is wrong with hooks that follow a run."""

import math
import types

import pytest

from hekaton.contributions import hookimpl
from hekaton.control import Request, RunControl
from hekaton.errors import PluginError
from hekaton.testing import check_run_hooks

METRICS = [{"loss": 3.0}, {"loss": 1.9}, {"loss": 1.0}]


def plugin(**hooks):
    module = types.ModuleType("follower")
    for name, function in hooks.items():
        function.__name__ = name
        setattr(module, name, hookimpl(function))
    return module


def stop_below_2(step, metrics, control):
    if metrics.get("loss", math.inf) < 2.0:
        control.ask(stop=True, save=True, reason="the loss is below 2")


def test_requests_of_a_sound_plugin_are_returned():
    saved = []
    asked = check_run_hooks(
        plugin(
            hekaton_step_ended=stop_below_2,
            hekaton_checkpoint_saved=lambda step, folder: saved.append(folder.name),
        ),
        metrics=METRICS,
    )
    assert asked == [Request(), Request(save=True, stop=True, reasons=("the loss is below 2",))]
    assert saved == ["step-4", "step-104"]  # of the run that starts, and of the one that resumes


def only_logged(step, metrics):
    assert metrics["loss"] > 0


def change(metrics):
    metrics["loss"] = 0.0


def ask_for_nothing(step, control):
    control.ask(reason="just to say so")


def ask_without_a_reason(step, control):
    control.ask(stop=True, reason=" ")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (plugin(hekaton_step_ended=only_logged), r"hekaton_step_ended\(step=1, metrics=.*\) raised KeyError: 'loss'"),
        (plugin(hekaton_step_ended=change), "raised TypeError"),
        (plugin(hekaton_step_ended=ask_for_nothing), r"control\.ask\(\) asks for nothing that a run can do"),
        (plugin(hekaton_step_ended=ask_without_a_reason), r"control\.ask\(\) needs a reason for the log"),
        (plugin(hekaton_run_ended=lambda step: step), "hekaton_run_ended returned 4: a lifecycle hook returns nothing"),
        (plugin(hekaton_models=lambda: []), "implements no lifecycle hook"),
        (plugin(hekaton_step_end=lambda step: None), "unknown hook 'hekaton_step_end'"),
    ],
)  # fmt: skip
def test_a_wrong_plugin_is_rejected(module, message):
    with pytest.raises(AssertionError, match=message):
        check_run_hooks(module, metrics=METRICS[:2])


def test_starting_again_goes_with_a_stop():
    with pytest.raises(PluginError, match="asks for nothing"):
        RunControl().ask(save=True, again=True, reason="maintenance")
