"""What an evaluation promises, on the processes of a run that has trained."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from hekaton.contributions import Evaluation
from hekaton.random_state import generators_kept
from hekaton.testing.conformance.subject import CheckedContribution

LONGEST = 10_000
"""Steps after which an evaluation that has never been due is said to be off."""


def judged(trainer: Any, name: str) -> list[dict[str, float]]:
    """The numbers of each rank, and nothing where it is due at no step.

    :raises AssertionError: for an evaluation that is due at other steps on other ranks, that gives other
        numbers when it is asked again, or that changes the model.
    """
    one = trainer.assembled.build(Evaluation, name, trainer.assembled)
    due = next((step for step in range(1, LONGEST + 1) if one.due(step)), 0)
    said = _of_all(due)
    assert len(set(said)) == 1, f"it is first due at step {said} on the ranks"
    if not due:
        return []
    before = _values(trainer.model_parts)
    numbers = _asked(one)
    assert numbers, f"it is due at step {due}, and gives no numbers"
    assert one.due(due), f"asked again, it is not due at step {due}"
    again = _asked(one)
    assert repr(again) == repr(numbers), f"it gives {numbers}, and asked again {again}"
    after = _values(trainer.model_parts)
    for key, value in before.items():
        assert after[key] == value, f"it changes {key} of the model"
    return _of_all(numbers)


def _asked(one: Any) -> dict[str, float]:
    with generators_kept():
        return {key: float(value) for key, value in one().items()}


def _values(parts: Any) -> dict[str, Any]:
    """The mode of each module, and a number of each tensor that tells it from others."""
    found: dict[str, Any] = {}
    for number, part in enumerate(parts):
        for name, module in part.named_modules():
            found[f"the mode of module '{name}' ({number})"] = module.training
        for name, value in part.state_dict().items():
            local = getattr(value, "to_local", lambda value=value: value)()
            found[f"'{name}'"] = local.detach().double().sum().item()
    return found


def _of_all(value: Any) -> list[Any]:
    everything: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everything, value)
    return everything


def selected(subject: CheckedContribution) -> str:
    """The name of the evaluation that is checked, empty for other kinds."""
    return subject.record.name if isinstance(subject.record, Evaluation) else ""
