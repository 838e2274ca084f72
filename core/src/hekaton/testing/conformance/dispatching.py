"""What a dispatcher promises, on two processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from hekaton.contributions import Dispatcher
from hekaton.testing.conformance.runs import search_path
from hekaton.testing.conformance.subject import CheckedContribution
from hekaton.testing.launcher import run_processes

TOKENS, DIM, EXPERTS, TOP_K = 6, 4, 4, 2
TOLERANCE = 1e-9


def tokens(subject: CheckedContribution) -> None:
    run_processes(
        __file__, "dispatch", processes=2, timeout=100, module=subject.module,
        arguments=json.dumps(subject.run), name=subject.record.name if subject.record else "",
        path=search_path(), tolerance=subject.tolerance or TOLERANCE,
    )  # fmt: skip


def dispatch(module: str, arguments: str, name: str, path: list[str], tolerance: float) -> None:
    """On each of two processes, with tokens and half of the experts of its own: compare with all experts."""
    sys.path[:] = path
    from hekaton.parallel.experts import ExpertGroup

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    alone = [dist.new_group([one]) for one in range(ranks)][rank]
    assert dist.group.WORLD is not None
    subject = CheckedContribution(module, None, (), json.loads(arguments))
    built = subject.build(Dispatcher, name, ExpertGroup(ep=dist.group.WORLD, etp=alone))
    matrices, x, chosen, weights = _given()
    for on_input in (False, True):
        expected = _by_hand(x, chosen, weights, matrices, on_input=on_input)
        gradients = torch.autograd.grad(expected.square().sum(), (x, matrices))
        mine = slice(rank * TOKENS, (rank + 1) * TOKENS)
        here = slice(rank * EXPERTS // ranks, (rank + 1) * EXPERTS // ranks)
        own_x, own_matrices = x[mine].detach().requires_grad_(), matrices[here].detach().requires_grad_()
        found = built(
            own_x, chosen[mine], weights[mine], _experts(own_matrices), n_experts=EXPERTS,
            weights_on_input=on_input,
        )  # fmt: skip
        own = torch.autograd.grad(found.square().sum(), (own_x, own_matrices))
        how = "weights on what goes in" if on_input else "weights on what comes out"
        for what, one, other in (
            ("the results", found, expected[mine]),
            ("the gradients of the tokens", own[0], gradients[0][mine]),
            ("the gradients of the experts", own[1], gradients[1][here]),
        ):
            difference = (one - other).abs().max().item()
            assert difference <= tolerance, f"{how}: {what} differ from one process by {difference:.2g}"
    dist.destroy_process_group()


def _given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Experts' matrices, and the tokens of both ranks, one of whose experts is chosen by nobody."""
    generator = torch.Generator().manual_seed(0)
    options: Any = {"generator": generator, "dtype": torch.float64}
    matrices = torch.randn(EXPERTS, DIM, DIM, **options).requires_grad_()
    x = torch.randn(2 * TOKENS, DIM, **options).requires_grad_()
    chosen = torch.stack(
        [torch.randperm(EXPERTS - 1, generator=generator)[:TOP_K] for _ in range(2 * TOKENS)]
    )
    return matrices, x, chosen, torch.rand(2 * TOKENS, TOP_K, **options)


def _by_hand(
    x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, matrices: torch.Tensor, *, on_input: bool
) -> torch.Tensor:
    """Token after token."""
    rows = []
    for token, experts, scales in zip(x, chosen, weights, strict=True):
        results = [
            torch.tanh(scale * token @ matrices[number])
            if on_input
            else scale * torch.tanh(token @ matrices[number])
            for number, scale in zip(experts.tolist(), scales, strict=True)
        ]
        rows.append(torch.stack(results).sum(0))
    return torch.stack(rows)


def _experts(matrices: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def apply(rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        sorted_rows: Any = rows
        parts = sorted_rows.split(counts.tolist())
        return torch.cat([torch.tanh(part @ one) for part, one in zip(parts, matrices, strict=True)])

    return apply
