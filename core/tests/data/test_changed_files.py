"""Files that changed since a checkpoint are named."""

from __future__ import annotations

import pytest

from hekaton.data.changed_files import changed_files


def test_files_that_differ_are_named_and_other_names_of_the_same_are_not() -> None:
    saved = {"a": "1", "b": "2", "c": "3", "d": "4"}
    assert changed_files(saved, {"a": "1", "b": "9", "e": "3", "f": "7"}) == [
        "changed: b",
        "gone: d",
        "new: f",
    ]
    many = {str(number): "x" for number in range(8)}
    assert changed_files(many, dict.fromkeys(many, "y"))[4:] == ["changed: 4", "and 3 more"]


@pytest.mark.parametrize("saved", [None, 3, [], {}, "a"])
def test_what_no_run_keeps_says_nothing(saved: object) -> None:
    assert changed_files(saved, {"a": "1"}) == []
