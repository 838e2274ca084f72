"""What torch, numpy and Python raise where memory does not suffice, as one error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hekaton.errors import TrainingError


@contextlib.contextmanager
def out_of_memory_is_said(where: object, *, hint: str) -> Iterator[None]:
    """:param where: says what was being done, as in "in step 3".
    :raises TrainingError: in place of what is raised where memory does not suffice.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error).strip()
        if (
            not isinstance(error, MemoryError | torch.OutOfMemoryError)
            and "can't allocate memory" not in text
        ):
            raise
        first = text.splitlines()[0] if text else type(error).__name__
        raise TrainingError(f"out of memory {where}: {first}", hint=hint) from error
