"""Memory that does not suffice is an error that says where."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hekaton.errors import TrainingError
from hekaton.failures.whereabouts import Whereabouts
from hekaton.memory import out_of_memory_is_said


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
    with pytest.raises(TrainingError) as e, out_of_memory_is_said(where, hint="choose less"):
        allocate()
    assert str(e.value).startswith("out of memory in step 3 (forward_backward): ")
    assert str(e.value).endswith("\n  choose less")


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, RecursionError])
def test_other_errors_stay_what_they_are(kind):
    with pytest.raises(kind, match="size mismatch"), out_of_memory_is_said("there", hint=""):
        raise kind("size mismatch")
