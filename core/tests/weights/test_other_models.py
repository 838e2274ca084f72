"""Files that hold several models: the names of ours may have a prefix, the others are left out when told so."""

from __future__ import annotations

import pytest
import torch

from hekaton.errors import CheckpointError
from hekaton.weights import WeightTable, entry, whole

TABLE = WeightTable(
    entries=[entry("norm.weight", "model.norm.weight")],
    prefix="language_model.",
    others={"vision": ("vision_model.", "projector."), "audio": ("audio_model.",)},
)
TEXT, VISION = "language_model.model.norm.weight", ["vision_model.0.weight", "vision_model.1.weight"]


def test_names_with_and_without_the_prefix_are_those_of_the_model():
    for there in (TEXT, "model.norm.weight"):
        assert TABLE.own_names([there], what="it") == {"model.norm.weight": there}
    written = TABLE.to_hf({"norm.weight": whole(torch.ones(2))}, what="it")
    assert list(written) == ["model.norm.weight"]


def test_another_model_is_refused_by_name_or_left_out_with_a_notice():
    names = [TEXT, *VISION, "projector.weight"]
    with pytest.raises(CheckpointError) as error:
        TABLE.own_names(names, what="it")
    assert error.value.message == (
        "it holds a second model, vision, which is not trained here: vision_model.*.weight (2), projector.weight"
    )
    assert error.value.hint == (
        "leave it out with 'hekaton convert from-hf --leave_out vision', or in a run with "
        'checkpoint.initial_load_leave_out = ["vision"]'
    )
    assert TABLE.own_names(names, leave_out=["vision"], what="it") == {"model.norm.weight": TEXT}
    assert TABLE.notices(names) == ["vision: left out, 3 tensors"]
    with pytest.raises(CheckpointError, match="second model, audio"):
        TABLE.own_names([*names, "audio_model.weight"], leave_out=["vision"], what="it")


def test_what_is_left_out_must_be_known():
    with pytest.raises(CheckpointError, match="it: cannot leave out 'vison'") as error:
        TABLE.own_names([TEXT], leave_out=["vison"], what="it")
    assert error.value.hint == "known: vision, audio"
    with pytest.raises(CheckpointError) as error:
        WeightTable(entries=[]).own_names([], leave_out=["vision"], what="it")
    assert error.value.hint == "there is nothing to leave out"
