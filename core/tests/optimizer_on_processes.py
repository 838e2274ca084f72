"""Run by test_optim.py: steps of Adam on parts of parameters against torch's on the whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from hekaton.optim import adam, adamw
from hekaton.parameters import NamedParameter, ParameterGroup

PLACES = {
    "even": Shard(0),
    "uneven": Shard(0),
    "empty": Shard(0),
    "columns": Shard(1),
    "replicated": Replicate(),
}
"""Parameter -> how it is placed on two ranks; the second has no row of the one called empty."""
SHAPES = {"even": (4, 3), "uneven": (5, 3), "empty": (1, 3), "columns": (3, 4), "replicated": (3,)}


def compare() -> None:
    """Every implementation of both optimizers; raises where one differs."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for build, theirs in ((adamw, torch.optim.AdamW), (adam, torch.optim.Adam)):
        for implementation in ("fused", "foreach", "for-loop"):
            settings = SimpleNamespace(
                lr=0.1, beta1=0.8, beta2=0.9, eps=1e-8, weight_decay=0.1, implementation=implementation
            )
            _compare(build, theirs, settings, mesh)
    dist.destroy_process_group()


def _compare(build: Any, theirs: Any, settings: Any, mesh: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    start = {name: torch.randn(*shape, generator=draw, dtype=torch.float64) for name, shape in SHAPES.items()}
    whole = {name: nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    parts = {
        name: nn.Parameter(distribute_tensor(tensor, mesh, [PLACES[name]])) for name, tensor in start.items()
    }
    named = tuple(NamedParameter(name=name, parameter=one, role="matrix") for name, one in parts.items())
    group = ParameterGroup(name="rest", lr=settings.lr, weight_decay=settings.weight_decay, parameters=named)
    ours = build(None, settings, [group])
    reference = theirs(
        whole.values(), lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps,
        weight_decay=settings.weight_decay, foreach=False,
    )  # fmt: skip
    for _ in range(3):
        for name, parameter in whole.items():
            parameter.grad = torch.randn(*SHAPES[name], generator=draw, dtype=torch.float64)
            parts[name].grad = distribute_tensor(parameter.grad, mesh, [PLACES[name]])
        half = whole["replicated"].grad / 2
        parts["replicated"].grad = DTensor.from_local(half, mesh, [Partial()])
        ours.step()
        reference.step()
    for name, parameter in whole.items():
        torch.testing.assert_close(parts[name].full_tensor(), parameter, rtol=1e-13, atol=1e-13)
        for moment in ("exp_avg", "exp_avg_sq"):
            kept = ours.state[parts[name]][moment]
            assert kept.placements == (PLACES[name],), name
            torch.testing.assert_close(
                kept.full_tensor(), reference.state[parameter][moment], rtol=1e-13, atol=1e-13
            )
