"""FLUX.1 under every layout that its plan claims, with weights of which all have a gradient."""

import sys
from pathlib import Path

import pytest

from hekaton.testing import check_model

sys.path.insert(0, str(Path(__file__).parent))
from flux_to_check import spec


@pytest.mark.slow
def test_layouts_compute_what_one_process_does():
    assert check_model(spec) == ("shard2", "tp2", "cp2")
