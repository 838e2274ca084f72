"""Does an optimizer keep its contract: does it train what it is given, at its rates, and resume exactly?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hekaton.checkpoint.tensors.state import optimizer_state, restore_optimizers
from hekaton.config.sections import OptimizerSection
from hekaton.optim import LearningRate
from hekaton.parameters import group_names, parameter_groups, roles, trained_names

VOCABULARY = 16
Build = Callable[[Any, OptimizerSection, Sequence[Any]], Any]


def check_optimizer(build: Build, *, section: Any = None, settings: OptimizerSection | None = None) -> None:
    """Build an optimizer for a small model with parameters of every role, experts included.

    Each parameter is in one group of one optimizer, with the rate and the decay of its own row of
    ``[[optimizer.groups]]``. A step changes every parameter that has a gradient, none that has not, and none
    at a rate of 0. What it keeps are tensors, numbers and strings, the same before a first step as after it;
    put back into a new one, training goes on bit for bit.

    It says nothing of sharded parameters: :func:`~hekaton.testing.check_layouts` with ``--optimizer.name``
    does.

    :param build: as in the record, ``build(section, settings, groups)``.
    :param settings: of ``[optimizer]``; its groups are replaced.
    :raises AssertionError: saying what is wrong.
    :raises CheckpointError: for state that a checkpoint cannot hold.
    """
    settings = settings or OptimizerSection(implementation="for-loop")
    row = {"match": "*norm*", "weight_decay": 0.0, "lr_factor": 0.5}
    settings = type(settings).model_validate({**settings.model_dump(), "groups": [row]})
    model, optimizers = _made(build, section, settings)
    _check_groups(model, optimizers, settings)

    _train(model, optimizers, steps=0)
    fresh = optimizer_state([model], optimizers)[0].keys()
    before = _copied(model)
    _train(model, optimizers, steps=1)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), f"a step leaves '{name}' as it was"
    kept = optimizer_state([model], optimizers)[0].keys()
    assert kept == fresh, (
        f"its state after a step has other entries than before the first: {sorted(kept ^ fresh)}"
    )

    before = _copied(model)
    schedule = LearningRate(optimizers, lambda steps: float(steps))
    schedule.apply()
    _train(model, optimizers, steps=1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), f"a step at a rate of 0 changes '{name}'"
    schedule.steps_done = 1
    schedule.apply()

    _check_resumption(model, optimizers, build, section, settings)
    before = _copied(model)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), f"a step changes '{name}', which has no gradient"


class _Experts(nn.Module):
    """Two experts, both of which every token goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(0.1 * torch.randn(2, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """:param x: (tokens, 8)"""
        return x + (x @ self.w).sum(0)


def _made(
    build: Build, section: Any, settings: OptimizerSection
) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("embedding", nn.Embedding(VOCABULARY, 8))
    model.add_module("norm", nn.RMSNorm(8))
    model.add_module("experts", _Experts())
    model.add_module("hidden", nn.Linear(8, 24))
    model.add_module("output", nn.Linear(24, VOCABULARY, bias=False))
    names = group_names(trained_names(model), settings, what="the model of the check")
    groups = parameter_groups(model, names, roles(model, vocab_size=VOCABULARY), settings)
    built = build(section, settings, groups)
    optimizers = [built] if isinstance(built, torch.optim.Optimizer) else list(built)
    wrong = [type(one).__name__ for one in optimizers if not isinstance(one, torch.optim.Optimizer)]
    assert not wrong, f"build returned {wrong[0]}, not an optimizer or a list of them"
    return model, optimizers


def _check_groups(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], settings: OptimizerSection
) -> None:
    (row,) = settings.groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[str] = []
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        for parameter in group["params"]:
            assert id(parameter) in names, "it has a parameter that it was not given"
            name = names[id(parameter)]
            found.append(name)
            norm = name.startswith("norm")
            lr = settings.lr * (row.lr_factor if norm else 1.0)
            assert math.isclose(float(group["lr"]), lr, rel_tol=1e-6), (
                f"'{name}' has the rate {group['lr']}, its group's is {lr}"
            )
            decay = row.weight_decay if norm else settings.weight_decay
            its = group.get("weight_decay", decay)
            assert its == decay, f"'{name}' has the weight decay {its}, its group's is {decay}"
    for name in names.values():
        times = found.count(name)
        assert times == 1, f"'{name}' is in {times} groups of its optimizers"


def _train(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], *, steps: int) -> None:
    tokens = torch.arange(VOCABULARY)
    for step in range(steps):
        loss: Any = nn.functional.cross_entropy(model(tokens), (tokens * 5 + step) % VOCABULARY)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _check_resumption(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    build: Build,
    section: Any,
    settings: OptimizerSection,
) -> None:
    """Put weights and state into a new model and its optimizers, and train both on."""
    other, new = _made(build, section, settings)
    other.load_state_dict(model.state_dict())
    tensors, rest = optimizer_state([model], optimizers)
    room, _ = optimizer_state([other], new)
    for name, tensor in tensors.items():
        assert room[name].shape == tensor.shape, f"'{name}' is kept in the shape of what was trained before"
        room[name].copy_(tensor)
    restore_optimizers([other], new, room, rest)
    _train(model, optimizers, steps=3)
    _train(other, new, steps=3)
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), (
            f"training does not resume exactly: '{name}' differs after state was put back"
        )


def _copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
