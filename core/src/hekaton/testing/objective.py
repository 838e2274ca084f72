"""Does an objective keep its contract: does it give what it declares, whatever rows it is given together?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from hekaton.draws import Draw
from hekaton.objective import Batch, TrainingObjective, check_declared


@torch.no_grad()
def check_objective(
    objective: TrainingObjective, batch: Batch, *, seq_len: int, model: Callable[..., Any], seed: int = 0
) -> None:
    """Check an objective on a batch, as a whole and row by row.

    Inputs and targets are as declared, and the first stage has one. Every term has a count and a sum. What
    is prepared for a row, the counts and the sums do not depend on the rows beside it: so no layout changes
    them.

    :param batch: what the row maker gives, at least two rows.
    :param model: ``model(**inputs)`` returns what the loss is computed from, each row by itself.
    :raises AssertionError: saying what is wrong.
    """
    rows = len(next(iter(batch.values())))
    assert rows > 1, "give a batch of two rows or more"
    declared = objective.inputs(seq_len)
    assert any(one.first_stage for one in declared), "no input is declared for the first stage"
    draw = Draw(seed=seed, step=1, rows=range(rows), device=torch.device("cpu"))
    inputs, targets = objective.prepare(batch, draw)
    wrong = [
        *check_declared(inputs, declared, what="input"),
        *check_declared(targets, objective.targets(seq_len), what="target"),
    ]
    assert not wrong, "\n".join(wrong)
    counts, sums = objective.count(targets), objective.loss(model(**inputs), targets)
    terms = set(objective.weights)
    assert set(counts) == terms, f"counts are of {sorted(counts)}, weights of {sorted(terms)}"
    assert set(sums) == terms, f"sums are of {sorted(sums)}, weights of {sorted(terms)}"
    counted, summed = dict.fromkeys(terms, 0), dict.fromkeys(terms, 0.0)
    for row in range(rows):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        mine, of_mine = objective.prepare(alone, replace(draw, rows=range(row, row + 1)))
        for name, value in (mine | of_mine).items():
            together = (inputs | targets)[name][row : row + 1]
            assert torch.equal(value, together), f"'{name}' of a row depends on the rows beside it"
        for name, count in objective.count(of_mine).items():
            counted[name] += int(count)
        for name, term in objective.loss(model(**mine), of_mine).items():
            summed[name] += float(term)
    for name in terms:
        assert counted[name] == int(counts[name]), f"the count of '{name}' is no sum over rows"
        close = abs(summed[name] - float(sums[name])) <= 1e-4 * max(1.0, abs(summed[name]))
        assert close, f"'{name}' is no sum over rows: is it divided already?"
