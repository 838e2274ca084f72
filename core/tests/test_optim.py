"""Schedules against values worked out by hand, clipping against torch's own."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hekaton.errors import PluginError
from hekaton.optim import LearningRate, clip_grad_norm, warmup_stable_decay
from hekaton.testing import run_processes


def factors(steps, **settings):
    settings = {
        "warmup_steps": 0,
        "decay_ratio": None,
        "decay_type": "linear",
        "min_lr_factor": 0.0,
    } | settings
    factor = warmup_stable_decay(None, SimpleNamespace(**settings), steps)
    return [factor(done) for done in range(steps)]


def test_warms_up_stays_and_decays_towards_the_step_after_the_last():
    got = factors(10, warmup_steps=4, decay_ratio=0.4)
    assert got == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_without_a_ratio_the_decay_fills_the_rest():
    assert factors(6, warmup_steps=2) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("decay_type", "half_way"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5)), ("cosine", 0.5)]
)
def test_shape_and_floor_of_the_decay(decay_type, half_way):
    got = factors(4, decay_type=decay_type, min_lr_factor=0.1)
    assert got[0] == 1.0
    assert got[2] == pytest.approx(0.1 + 0.9 * half_way)


def test_after_the_last_step_the_factor_stays_at_the_floor():
    settings = SimpleNamespace(warmup_steps=0, decay_ratio=0.5, decay_type="linear", min_lr_factor=0.2)
    factor = warmup_stable_decay(None, settings, 4)
    assert factor(4) == factor(100) == pytest.approx(0.2)


def test_learning_rate_scales_each_group_from_its_own_start():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    rate = LearningRate([optimizer], lambda done: 1 / (done + 1))
    rate.steps_done = 3
    assert rate.apply() == 0.25
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.25, 0.025])


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_that_of_torch(max_norm):
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(n, generator=generator) for n in (3, 50)]
    ours, theirs = ([nn.Parameter(torch.zeros_like(g)) for g in grads] for _ in range(2))
    for parameters in (ours, theirs):
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
    ours.append(nn.Parameter(torch.zeros(2)))  # without a gradient
    expected = nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(clip_grad_norm(ours, max_norm), expected)
    for mine, its in zip(ours[:2], theirs, strict=True):
        torch.testing.assert_close(mine.grad, its.grad)


def test_max_norm_0_only_measures():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_grad_norm([parameter], 0.0).item() == 5.0
    assert parameter.grad.tolist() == [3.0, 4.0]


def test_a_rate_that_is_a_tensor_stays_one():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=torch.tensor(0.5), foreach=False)
    rate = optimizer.param_groups[0]["lr"]
    schedule = LearningRate([optimizer], lambda steps: 1.0 / (1 + steps))
    schedule.steps_done = 3
    schedule.apply()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.125


def test_adam_on_parts_of_parameters_is_torchs_on_the_whole():
    run_processes(Path(__file__).with_name("optimizer_on_processes.py"), "compare", processes=2, timeout=60)


@pytest.mark.parametrize("factor", [None, "1", float("nan"), float("inf"), -0.1, torch.tensor(1.0)])
def test_a_factor_of_a_schedule_is_a_finite_number_from_0_on(factor):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    rate = LearningRate([optimizer], lambda done: factor if done else 1)
    rate.apply()
    rate.steps_done = 1
    with pytest.raises(PluginError, match=r"schedule's factor after 1 steps is "):
        rate.apply()
    assert optimizer.param_groups[0]["lr"] == 0.5
