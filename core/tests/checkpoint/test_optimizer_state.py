"""Collecting the state of optimizers changes nothing, restoring it continues exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.tensors.state import (
    model_tensors,
    optimizer_state,
    restore_optimizers,
    restore_rng,
    rng_tensors,
    stored_tensors,
)
from hekaton.errors import CheckpointError


class Model(nn.Module):
    """A tied weight, a buffer, a frozen parameter, and one that gets a gradient only when asked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 6)
        self.middle = nn.Linear(6, 6)
        self.late = nn.Parameter(torch.randn(6))
        self.frozen = nn.Parameter(torch.randn(6), requires_grad=False)
        self.output = nn.Linear(6, 11, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("cache", torch.ones(3), persistent=False)

    def forward(self, tokens: torch.Tensor, late: bool) -> torch.Tensor:
        self.seen += 1
        hidden = self.middle(self.embedding(tokens)).tanh() * self.frozen
        return self.output(hidden + self.late if late else hidden)


class Averaged(torch.optim.Optimizer):
    """State of every kind: a tensor, a float, an int, a flag, a string, None."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"mean": torch.ones_like(parameter), "decay": 0.5, "count": 0}
                    state |= {"odd": False, "phase": "first", "none": None}
                state["count"] += 1
                state["odd"] = state["count"] % 2 == 1
                state["decay"] *= 0.9
                state["phase"] = f"{state['phase']}+"
                state["mean"] = state["mean"] * state["decay"] + parameter.grad * len(state["phase"])
                parameter -= group["lr"] * state["mean"] * (2 if state["odd"] else 1)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
    "adam eps 0": lambda p: torch.optim.Adam(p, lr=0.1, eps=0.0, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "averaged": lambda p: Averaged(p, lr=0.01),
}


def train(model: Model, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 11, (4, 5), generator=generator)
        loss = nn.functional.cross_entropy(model(tokens, late=step >= 4).flatten(0, 1), tokens.flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def saved_and_loaded(
    folder: Path, model: Model, optimizers: list[Any], into: Model, into_optimizers: list[Any]
) -> None:
    tensors, rest = optimizer_state([model], optimizers)
    parts = {"model": model_tensors([model]), "optimizer": tensors}
    CheckpointManager(folder, describe={}).save(3, parts, {"optimizer": rest})
    tensors, _ = optimizer_state([into], into_optimizers)
    parts = {"model": model_tensors([into]), "optimizer": tensors}
    loaded = CheckpointManager(folder, describe={}).load(parts)
    assert loaded is not None
    restore_optimizers([into], into_optimizers, tensors, loaded.info["optimizer"])


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_resumed_run_is_bit_identical(make: Callable[[Any], torch.optim.Optimizer], tmp_path: Path) -> None:
    whole = Model()
    optimizer = make(whole.parameters())
    train(whole, [optimizer], range(7))

    first = Model()
    optimizer = make(first.parameters())
    train(first, [optimizer], range(3))
    second = Model()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
    resumed = make(second.parameters())
    saved_and_loaded(tmp_path, first, [optimizer], second, [resumed])
    assert_same(parameters(second), parameters(first))
    train(second, [resumed], range(3, 7))
    assert_same(parameters(second), parameters(whole))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_collecting_state_changes_nothing(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = Model()
    optimizer = make(model.parameters())
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (step + 1))
    weights = parameters(model)
    state = {key: dict(value) for key, value in optimizer.state.items()}
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]

    tensors, rest = optimizer_state([model], [optimizer])
    json.dumps(rest)
    assert_same(parameters(model), weights)
    assert optimizer.state == state
    assert calls == []
    assert schedule.last_epoch == 0
    assert not hasattr(optimizer, "_opt_called")
    assert all(parameter.grad is None for parameter in model.parameters())
    for before, group in zip(groups, optimizer.param_groups, strict=True):
        assert before.keys() == group.keys()
        assert all(one is other for one, other in zip(before["params"], group["params"], strict=True))

    train(model, [optimizer], range(3))
    assert optimizer_state([model], [optimizer])[0].keys() == tensors.keys(), "the keys never change"


def test_names_and_values_of_adamw() -> None:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, [optimizer], range(3))
    tensors, rest = optimizer_state([model], [optimizer])
    names = ("embedding.weight", "middle.weight", "middle.bias", "late")
    kinds = ("step", "exp_avg", "exp_avg_sq")
    assert set(tensors) == {f"{name}.{kind}" for name in names for kind in kinds}
    assert tensors["middle.bias.step"].item() == 3
    assert tensors["middle.bias.exp_avg"] is optimizer.state[model.middle.bias]["exp_avg"]
    assert rest == {"values": {}, "unstarted": {"late": True}}


def test_a_restored_optimizer_has_exactly_the_state_that_was_saved(tmp_path: Path) -> None:
    model = Model()
    optimizer = Averaged(model.parameters(), lr=0.01)
    train(model, [optimizer], range(3))
    other = Model()
    restored = Averaged(other.parameters(), lr=0.01)
    saved_and_loaded(tmp_path, model, [optimizer], other, [restored])
    state = restored.state[other.middle.bias]
    assert {key: value for key, value in state.items() if key != "mean"} == {
        "decay": pytest.approx(0.5 * 0.9**3), "count": 3, "odd": True, "phase": "first+++", "none": None,
    }  # fmt: skip
    assert torch.equal(state["mean"], optimizer.state[model.middle.bias]["mean"])
    assert type(state["odd"]) is bool
    assert other.late not in restored.state, "it had none, so it starts as in an uninterrupted run"


def test_several_optimizers_share_one_namespace(tmp_path: Path) -> None:
    def optimizers(model: Model) -> list[torch.optim.Optimizer]:
        first = [model.embedding.weight, model.late]
        return [torch.optim.AdamW(first), torch.optim.SGD(model.middle.parameters(), momentum=0.9)]

    whole = Model()
    train(whole, optimizers(whole), range(6))
    model, other = Model(), Model()
    before, after = optimizers(model), optimizers(other)
    train(model, before, range(3))
    saved_and_loaded(tmp_path, model, before, other, after)
    train(other, after, range(3, 6))
    assert_same(parameters(other), parameters(whole))


def test_model_parts_are_one_model() -> None:
    model = Model()
    parts = [nn.ModuleDict({"middle": model.middle}), nn.ModuleDict({"embedding": model.embedding})]
    assert list(model_tensors(parts)) == ["middle.weight", "middle.bias", "embedding.weight"]
    optimizers = [torch.optim.AdamW(part.parameters()) for part in parts]
    tensors, _ = optimizer_state(parts, optimizers)
    assert "embedding.weight.exp_avg" in tensors
    assert "middle.bias.exp_avg" in tensors


def test_a_tied_weight_is_saved_once_and_buffers_that_do_not_persist_are_not() -> None:
    tensors = model_tensors([Model()])
    assert set(tensors) == {"embedding.weight", "middle.weight", "middle.bias", "late", "frozen", "seen"}


def test_state_that_no_checkpoint_can_hold_is_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[model.bias]["history"] = [torch.ones(1)]
    with pytest.raises(CheckpointError, match="SGD keeps 'history' of 'bias' as list"):
        optimizer_state([model], [optimizer])

    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

    with pytest.raises(CheckpointError, match="the model keeps '_extra_state' as dict"):
        model_tensors([Extra(2, 2)])


def test_random_number_generators_resume(tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.rand(5)
    CheckpointManager(tmp_path, describe={}).save(1, {"rng": rng_tensors(0)}, {})
    expected = torch.rand(5)
    torch.manual_seed(99)
    states = rng_tensors(0)
    assert CheckpointManager(tmp_path, describe={}).load({"rng": states})
    assert not torch.equal(torch.rand(5), expected)
    restore_rng(states)
    assert torch.equal(torch.rand(5), expected)


def test_a_parameter_of_a_class_without_one_plain_tensor_is_refused():
    from torch.testing._internal.two_tensor import TwoTensor

    model = torch.nn.Linear(2, 2, bias=False)
    model.weight = torch.nn.Parameter(TwoTensor(torch.ones(2, 2), torch.ones(2, 2)))
    with pytest.raises(
        CheckpointError, match="keeps 'weight' as TwoTensor: checkpoints hold plain tensors only"
    ):
        stored_tensors([model])
