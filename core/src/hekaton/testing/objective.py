"""Does an objective keep its contract: does it give what it declares, whatever rows it is given together?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hekaton.draws import Draw
from hekaton.errors import PluginError
from hekaton.objective import (
    Batch,
    BatchTensor,
    TrainingObjective,
    changes,
    check_counts,
    check_declared,
    check_sums,
    check_unchanged,
    check_weights,
)


def check_objective(
    objective: TrainingObjective, batch: Batch, *, seq_len: int, model: Callable[..., Any], seed: int = 0
) -> None:
    """Check an objective on a batch, as a whole, row by row, and in two parts of the sequence.

    Inputs and targets are as declared, and the first stage has one. Every term has a count and a sum,
    scalars, and the loss has a gradient. What is prepared for a row, the counts and the sums do not depend on
    the rows beside it, nor, where the targets are declared as sequences, on the rest of the sequence: so no
    layout changes them. What is drawn is another in each step. The batch and the outputs stay as they are.

    :param batch: what the row maker gives, at least two rows, with something to count for each term.
    :param model: ``model(**inputs)`` returns what the loss is computed from, each row by itself.
    :raises AssertionError: saying what is wrong.
    """
    rows = len(next(iter(batch.values())))
    assert rows > 1, "give a batch of two rows or more"
    declared = [*objective.inputs(seq_len), *objective.targets(seq_len)]
    assert any(one.first_stage for one in objective.inputs(seq_len)), (
        "no input is declared for the first stage"
    )
    draw = _RecordedDraw(seed=seed, step=1, rows=range(rows), device=torch.device("cpu"))
    given = {name: value.clone() for name, value in batch.items()}
    inputs, targets = _prepared(objective, batch, draw)
    changed = [name for name, value in given.items() if not torch.equal(value, batch[name])]
    assert not changed, f"prepare() changes '{changed[0]}' of the batch: put what it makes into a new tensor"
    wrong = [
        *check_declared(inputs, objective.inputs(seq_len), what="input"),
        *check_declared(targets, objective.targets(seq_len), what="target"),
    ]
    assert not wrong, "\n".join(wrong)
    if draw.drawn:
        later, of_later = _prepared(objective, batch, replace(draw, step=2))
        assert not _equal(inputs | targets, later | of_later), "what it draws is the same in every step"
    with torch.no_grad():
        outputs = model(**inputs)
    counts, sums = _terms(objective, outputs, targets)
    for name, count in counts.items():
        assert int(count) > 0, f"'{name}' counts nothing in this batch: give one in which it does"
    _check_gradient(objective, outputs, targets)
    _check_rows(objective, batch, draw, (inputs | targets, counts, sums), model=model)
    _check_sequence(declared, objective, outputs, targets, (counts, sums))


@dataclass(frozen=True, kw_only=True)
class _RecordedDraw(Draw):
    """Remembers that something was drawn."""

    drawn: list[str] = field(default_factory=list)

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.drawn.append(name)
        return super().__call__(name, *args, **kwargs)


def _prepared(objective: TrainingObjective, batch: Batch, draw: Draw) -> tuple[Batch, Batch]:
    made: Any = objective.prepare(batch, draw)
    right = isinstance(made, tuple) and len(made) == 2 and all(isinstance(one, Mapping) for one in made)
    assert right, "prepare() must return two mappings: inputs and targets"
    return dict(made[0]), dict(made[1])


def _terms(
    objective: TrainingObjective, outputs: Any, targets: Batch
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    before = changes(outputs)
    counts, sums = objective.count(targets), objective.loss(outputs, targets)
    try:
        check_weights(objective)
        check_counts(objective, counts)
        check_sums(objective, sums)
        check_unchanged(objective, outputs, before)
    except PluginError as e:
        raise AssertionError(str(e)) from e
    return counts, sums


def _check_gradient(objective: TrainingObjective, outputs: Any, targets: Batch) -> None:
    parts = _tensors(outputs)
    for part in parts:
        part.requires_grad_()
    loss: Any = sum(objective.weights[name] * term for name, term in objective.loss(outputs, targets).items())
    assert loss.requires_grad, "the loss has no gradient: is what the model returned detached?"
    gradients = torch.autograd.grad(loss, parts, allow_unused=True)
    there = [one for one in gradients if one is not None]
    assert there, "the loss does not depend on what the model returned"
    assert all(bool(one.isfinite().all()) for one in there), "the gradient of the loss is not finite"
    for part in parts:
        part.requires_grad_(False)


def _tensors(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return (
        [tensor for one in outputs for tensor in _tensors(one)] if isinstance(outputs, list | tuple) else []
    )


@torch.no_grad()
def _check_rows(
    objective: TrainingObjective,
    batch: Batch,
    draw: Draw,
    together: tuple[Batch, Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]],
    *,
    model: Callable[..., Any],
) -> None:
    prepared, counts, sums = together
    counted, summed = dict.fromkeys(counts, 0), dict.fromkeys(sums, 0.0)
    for row in draw.rows:
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        mine, of_mine = _prepared(objective, alone, replace(draw, rows=range(row, row + 1)))
        for name, value in (mine | of_mine).items():
            same = torch.equal(value, prepared[name][row : row + 1])
            assert same, f"'{name}' of a row depends on the rows beside it"
        of_row = _terms(objective, model(**mine), of_mine)
        _add(counted, summed, *of_row)
    _compare(counted, summed, counts, sums, "rows: is it divided already?")


@torch.no_grad()
def _check_sequence(
    declared: Sequence[BatchTensor],
    objective: TrainingObjective,
    outputs: Any,
    targets: Batch,
    together: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]],
) -> None:
    """In two parts, as two ranks of context parallel have them; not where a target is no sequence, or outputs
    do not have the sequence as their second dim."""
    dims = {one.name: one.sequence for one in declared if one.name in targets}
    sizes = {int(targets[name].shape[1 + dim]) for name, dim in dims.items() if dim is not None}
    if None in dims.values() or len(sizes) != 1 or not isinstance(outputs, torch.Tensor):
        return
    (size,) = sizes
    if outputs.ndim < 2 or outputs.shape[1] != size or size % 2:
        return
    counted, summed = dict.fromkeys(together[0], 0), dict.fromkeys(together[1], 0.0)
    for start in (0, size // 2):
        part = {name: targets[name].narrow(1 + int(dim or 0), start, size // 2) for name, dim in dims.items()}
        _add(counted, summed, *_terms(objective, outputs.narrow(1, start, size // 2), part))
    cure = "the sequence: under context parallel a rank has a part of it"
    _compare(counted, summed, *together, cure)


def _add(
    counted: dict[str, int],
    summed: dict[str, float],
    counts: Mapping[str, torch.Tensor],
    sums: Mapping[str, torch.Tensor],
) -> None:
    for name, count in counts.items():
        counted[name] += int(count)
        summed[name] += float(sums[name])


def _compare(
    counted: Mapping[str, int],
    summed: Mapping[str, float],
    counts: Mapping[str, torch.Tensor],
    sums: Mapping[str, torch.Tensor],
    what: str,
) -> None:
    for name, count in counts.items():
        assert counted[name] == int(count), f"the count of '{name}' is no sum over {what}"
        close = abs(summed[name] - float(sums[name])) <= 1e-4 * max(1.0, abs(summed[name]))
        assert close, f"'{name}' is no sum over {what}"


def _equal(some: Batch, other: Batch) -> bool:
    return all(torch.equal(value, other[name]) for name, value in some.items())
