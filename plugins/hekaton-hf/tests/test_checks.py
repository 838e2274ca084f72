"""Files of a dataset that are missing are found by the check of a configuration."""

from __future__ import annotations

import pytest

from hekaton.config import load
from hekaton.errors import ConfigErrors
from hekaton.rules import check

FLAGS = ["--training.dataset", "text", "--model.tokenizer", "byte"]


def problems(flags, **options):
    try:
        check(load([], [*FLAGS, *flags]), world_size=1, device_type="cpu", **options)
    except ConfigErrors as e:
        return str(e)
    return ""


def test_no_path_is_a_violation_with_its_place():
    said = problems([])
    assert "dataset 'text' needs files to read\n  from: --training.dataset" in said
    assert 'dataset_path = "data/*.jsonl"' in said


def test_a_path_where_nothing_is_is_a_violation_where_the_run_starts(tmp_path):
    flags = ["--training.dataset_path", str(tmp_path / "no" / "*.jsonl")]
    assert "--training.dataset_path" in problems(flags)
    assert problems(flags, here=False) == ""


@pytest.mark.parametrize("enabled", [True, False])
def test_validation_is_checked_where_it_is_enabled(tmp_path, enabled):
    (tmp_path / "a.txt").write_text("text")
    flags = ["--training.dataset_path", str(tmp_path / "a.txt"), "--validation.dataset", "text"]
    flags += ["--validation.enable"] if enabled else []
    assert ("--validation.dataset" in problems(flags)) == enabled
