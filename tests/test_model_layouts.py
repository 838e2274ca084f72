"""``check_model`` runs a model under the layouts that its plan claims, and says what breaks it there."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hekaton.testing import check_before_step, check_model


def module(name):
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    loaded = importlib.util.module_from_spec(found)
    sys.modules[name] = loaded
    found.loader.exec_module(loaded)
    return loaded


spec = module("models_to_check").spec
counting = module("models_that_count")


def test_a_sound_model_runs_under_all_of_them():
    assert check_model(spec, "sound") == ("shard2", "tp2", "cp2", "pp2")


def test_a_layout_that_is_refused_is_left_out():
    assert check_model(spec, "one head") == ("shard2",)


FAULTS = {
    "counts its heads": "decoder counts its heads under tp2: RuntimeError: unflatten: ",
    "old attention": "decoder old attention under cp2: 'layers.0.inner' (OldAttention) cannot attend under context "
    "parallel: its forward must take (q, k, v, documents, queries_at=, keys_at=)",
    "needs its ends": "decoder needs its ends under pp2: decoder cannot be a pipeline: its forward fails as "
    "the last stage, without embedding, layers: TypeError: 'NoneType' object is not callable (models_to_check.py, line ",
}
MORE_FAULTS = {
    "heedless attention": "decoder heedless attention under cp2: the loss is ",
    "calls attention its own way": "decoder calls attention its own way under cp2: the model calls its inner "
    "attention, CausalAttention, with arguments that context parallel does not know: ",
    "numbers its layers": "decoder numbers its layers under pp2: the loss is ",
    "changes the type": "decoder changes the type under pp2: stage 0 of the pipeline returns (1, 16, 16) of float64, "
    "where the next one is to be given (1, 16, 16) of float32",
    "reaches into a block": "decoder reaches into a block under shard2: RuntimeError: ",
}  # fmt: skip


def said(fault: str) -> str:
    with pytest.raises(AssertionError) as caught:
        check_model(spec, fault)
    return str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_layout(fault):
    assert said(fault).startswith(FAULTS[fault])


@pytest.mark.slow
@pytest.mark.parametrize("fault", MORE_FAULTS)
def test_another_fault_is_named_with_its_layout(fault):
    assert said(fault).startswith(MORE_FAULTS[fault])


def test_without_the_layouts_it_passes():
    assert check_model(spec, "needs its ends", layouts=False) == ()


def test_a_specification_without_a_name_cannot_be_checked_elsewhere():
    with pytest.raises(AssertionError, match="cannot find this TrainSpec: give it a name in a module"):
        check_model(replace(spec), "sound")


def test_a_sound_before_step_passes():
    assert check_model(counting.spec, "sound") == ("shard2", "pp2")


@pytest.mark.slow
def test_what_a_model_draws_at_random_is_not_compared():
    check_before_step(counting.spec, "drops layers")


@pytest.mark.parametrize("fault", counting.FAULTS)
def test_a_wrong_before_step_is_named_with_its_case(fault):
    with pytest.raises(AssertionError) as caught:
        check_before_step(counting.spec, fault)
    assert str(caught.value).startswith(f"counting {fault} {counting.FAULTS[fault]}")


def test_a_model_without_before_step_cannot_be_checked_for_it():
    with pytest.raises(AssertionError, match="decoder has no before_step"):
        check_before_step(spec, "sound")
