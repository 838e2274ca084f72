"""Does ``before_step`` leave the same state, however a step is cut into microbatches and ranks?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from hekaton.spec import TrainSpec
from hekaton.testing.checked_steps import CheckedSteps, checked_steps, loaded_for
from hekaton.testing.plain_run import plain_run

STEPS = 2
"""The second step shows what the first one did not reset."""
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
OTHER_SEEDS = 10
"""What is the same with so many does not depend on random draws: with one, a count may be so by chance."""
WITHIN = 1e-3
"""Relative difference that rounding in float32 explains."""
CASES = {
    "in two microbatches": ["--training.local_batch_size", "1", "--training.global_batch_size", "2"],
    "with blocks recomputed": ["--activation_checkpoint.mode", "full"],
}


def state_on_one_process(spec: TrainSpec, flavor: str, file: Path, *, plugins: Sequence[str]) -> list[str]:
    """Write the state that ``before_step`` leaves on one process to ``file``, and compare it with that of the
    same rows in two microbatches, and with blocks recomputed; without what other seeds change.

    :returns: what differs, a line each.
    """
    expected = plain_run(spec, flavor, load=plugins)
    dist.init_process_group("gloo")

    draws = False

    def state(*flags: str) -> dict[str, torch.Tensor]:
        nonlocal draws
        loaded = loaded_for(spec, flavor, "", *flags, plugins=plugins)
        steps = checked_steps(loaded, expected, world_size=1)
        before = torch.get_rng_state()
        found = state_after(spec, steps)
        draws = draws or not torch.equal(before, torch.get_rng_state())
        return found

    reference = state()
    for seed in range(OTHER_SEEDS if draws else 0):
        torch.manual_seed(seed)
        other = state()
        reference = {name: one for name, one in reference.items() if _close(other[name], one)}
    if all(name.startswith("the parameter") for name in reference):
        raise AssertionError(
            f"{spec.name} {flavor} draws at random, and all buffers and gradients that before_step leaves "
            "depend on it: nothing can be compared; check a flavor without random draws"
        )
    wrong = [
        f"{case}: {line}" for case, flags in CASES.items() for line in differences(state(*flags), reference)
    ]
    torch.save(reference, file)
    dist.destroy_process_group()
    return wrong


def state_after(spec: TrainSpec, steps: CheckedSteps) -> dict[str, torch.Tensor]:
    """The buffers, parameters and gradients of this rank's parts after two steps without an optimizer."""
    assert spec.before_step is not None
    for part in steps.parts:
        part.train()
        for module in part.modules():
            if isinstance(module, DROPOUTS):
                module.eval()  # its draws are a rank's own
    for _ in range(STEPS):
        for part in steps.parts:
            part.zero_grad()
        steps.accumulate()
        with torch.no_grad():
            spec.before_step(steps.parts, steps.meshes)
    state: dict[str, torch.Tensor] = {}
    for part in steps.parts:
        state |= {f"the buffer '{name}'": one for name, one in part.named_buffers()}
        for name, parameter in part.named_parameters():
            state[f"the parameter '{name}'"] = parameter.detach()
            if parameter.grad is not None:
                state[f"the gradient of '{name}'"] = parameter.grad
    return {name: _whole(one).clone() for name, one in state.items()}


def differences(state: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> list[str]:
    """What of ``state`` differs from the reference after ``before_step``, a line each. Names of both only."""
    return [
        f"{name} differs after before_step: is it summed over the ranks of meshes.loss, counted once where a "
        "block is recomputed, and reset?"
        for name, one in state.items()
        if name in reference and not _close(one, reference[name])
    ]


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return bool((one - other).norm() <= WITHIN * other.norm() + 1e-6)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole
