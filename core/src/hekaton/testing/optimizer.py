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

    Each parameter is in one group of one optimizer, with the rate and the decay of its own entry of
    ``[[optimizer.groups]]``. The first step follows the gradient downwards and changes every parameter that
    has one; no step changes a parameter that has none, or any at a rate of 0. A decay has an effect: for an
    optimizer without one, give ``settings`` in which it is 0. What it keeps are tensors, numbers and strings,
    the same before a first step as after it; put back into a new one, training resumes bit for bit.

    It says nothing of sharded parameters: :func:`~hekaton.testing.check_layouts` with ``--optimizer.name``
    does.

    :param build: as in the record, ``build(section, settings, groups)``.
    :param settings: of ``[optimizer]``; its groups are replaced.
    :raises AssertionError: saying what is wrong.
    :raises CheckpointError: for state that a checkpoint cannot hold.
    """
    settings = settings or OptimizerSection(implementation="for-loop")
    entry = {"match": "*norm*", "weight_decay": 0.0, "lr_factor": 0.5}
    settings = type(settings).model_validate({**settings.model_dump(), "groups": [entry]})
    model, optimizers = _made(build, section, settings)
    _check_groups(model, optimizers, settings)

    _train(model, optimizers, steps=0)
    fresh = optimizer_state([model], optimizers)[0].keys()
    before = _copied(model)
    _train(model, optimizers, steps=1)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), f"a step leaves '{name}' as it was"
    _check_direction(before, _copied(model))
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
    if settings.weight_decay:
        _check_decay(build, section, settings)


def _check_direction(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    model = _model()
    model.load_state_dict(before)
    loss: Any = _loss(model, step=0)
    loss.backward()
    slope = sum(
        float((parameter.grad * (after[name] - before[name])).sum())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    )
    assert slope < 0, "the first step goes up the gradient, or across it"


def _check_decay(build: Build, section: Any, settings: OptimizerSection) -> None:
    """Compare a step with one without decay, from the same weights."""
    after = []
    for decay in (settings.weight_decay, 0.0):
        one = type(settings).model_validate({**settings.model_dump(), "weight_decay": decay})
        model, optimizers = _made(build, section, one)
        _train(model, optimizers, steps=1)
        after.append(_copied(model))
    same = [name for name, value in after[0].items() if torch.equal(value, after[1][name])]
    without = [name for name in same if not name.startswith("norm")]  # whose entry sets a decay of 0
    assert not without, f"optimizer.weight_decay = {settings.weight_decay} has no effect on '{without[0]}'"


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
    model = _model()
    names = group_names(trained_names(model), settings, what="the model of the check")
    groups = parameter_groups(model, names, roles(model, vocab_size=VOCABULARY), settings)
    built = build(section, settings, groups)
    optimizers = list(built) if isinstance(built, list | tuple) else [built]
    wrong = [type(one).__name__ for one in optimizers if not isinstance(one, torch.optim.Optimizer)]
    assert not wrong, f"build returned {wrong[0]}, not an optimizer or a list of them"
    assert optimizers, "build returned no optimizer"
    return model, optimizers


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("embedding", nn.Embedding(VOCABULARY, 8))
    model.add_module("norm", nn.RMSNorm(8))
    model.add_module("experts", _Experts())
    model.add_module("hidden", nn.Linear(8, 24))
    model.add_module("output", nn.Linear(24, VOCABULARY, bias=False))
    return model


def _check_groups(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], settings: OptimizerSection
) -> None:
    (entry,) = settings.groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[str] = []
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        for parameter in group["params"]:
            assert id(parameter) in names, "it has a parameter that it was not given"
            name = names[id(parameter)]
            found.append(name)
            norm = name.startswith("norm")
            lr = settings.lr * (entry.lr_factor if norm else 1.0)
            assert math.isclose(float(group["lr"]), lr, rel_tol=1e-6), (
                f"'{name}' has the rate {group['lr']}, its group's is {lr}"
            )
            decay = entry.weight_decay if norm else settings.weight_decay
            its = group.get("weight_decay", decay)
            assert its == decay, f"'{name}' has the weight decay {its}, its group's is {decay}"
    for name in names.values():
        times = found.count(name)
        assert times == 1, f"'{name}' is in {times} groups of its optimizers"


def _train(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], *, steps: int) -> None:
    for step in range(steps):
        loss: Any = _loss(model, step=step)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def _loss(model: nn.Module, *, step: int) -> torch.Tensor:
    tokens = torch.arange(VOCABULARY)
    return nn.functional.cross_entropy(model(tokens), (tokens * 5 + step) % VOCABULARY)


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
