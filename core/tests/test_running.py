"""A run whose memory does not suffice says so, and where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hekaton.errors import TrainingError
from hekaton.failures.whereabouts import Whereabouts
from hekaton.running import out_of_memory_is_said


def of_python() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(2**46), lambda: np.empty(2**46), of_python],
    ids=["torch", "numpy", "Python"],
)
def test_memory_that_does_not_suffice_is_an_error_with_its_place(allocate):
    where = Whereabouts()
    where.at("forward_backward", step=3)
    with pytest.raises(TrainingError) as e, out_of_memory_is_said(where):
        allocate()
    assert str(e.value).startswith("out of memory in step 3 (forward_backward): ")
    assert "choose a smaller training.local_batch_size" in str(e.value)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="size mismatch"), out_of_memory_is_said(Whereabouts()):
        raise RuntimeError("size mismatch")
