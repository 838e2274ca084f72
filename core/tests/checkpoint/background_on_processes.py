"""Run on two processes by test_background.py."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.runs import background
from hekaton.checkpoint.runs.background import BackgroundSaves
from hekaton.checkpoint.tensors import dcp
from hekaton.checkpoint.tensors.state import model_tensors, optimizer_state
from hekaton.errors import CheckpointError


def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Sharded, with sizes that 2 does not divide, and one step taken."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1))
    fully_shard(model)
    model.set_gradient_divide_factor(1.0)
    model.set_force_sum_reduction_for_comms(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(3, 5)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def parts_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": model_tensors([model]), "optimizer": optimizer_state([model], [optimizer])[0]}


def whole(parts: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()
        for part, tensors in parts.items()
        for name, t in tensors.items()
    }


def error_of(saves: BackgroundSaves) -> str:
    """What the next steps raise, without any other word between the ranks."""
    with pytest.raises((CheckpointError, ValueError)) as error:
        for _ in range(3000):
            saves.poll()
            time.sleep(0.01)
    return str(error.value)


def on_processes(folder: str) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, root = dist.get_rank(), Path(folder)
    model, optimizer = build(0)
    told: list[int] = []
    manager = CheckpointManager(root / "run", describe={})
    saves = BackgroundSaves(manager, pinned=False, saved=lambda step, _: told.append(step))

    # Training goes on at once, with collectives of its own while the save has its.
    expected = whole(parts_of(model, optimizer))
    saves.start(1, parts_of(model, optimizer), {"rank": rank}, good=True)
    while not told:
        step(model, optimizer)
        saves.poll()
        # All ranks learn of it at the same step.
        heard = [None] * 2
        dist.all_gather_object(heard, told)
        assert heard[0] == heard[1]
    other = parts_of(*build(1))
    assert CheckpointManager(root / "run", describe={}).load(other)
    loaded = whole(other)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name
    assert not torch.equal(whole(parts_of(model, optimizer))["model.0.weight"], expected["model.0.weight"])

    # Only rank 1's disk is full.
    big = {"model": {f"of_rank_{rank}": torch.ones(1 << 16)}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    saves.start(2, big, {}, good=True)
    message = error_of(saves)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message == f"cannot write the checkpoint {root}/run/step-2: File too large (rank 1)", message

    # A mistake of ours on rank 1: rank 0, whose thread waits for it, is told as well.
    background._PATIENCE = 0.5
    if rank == 1:

        def broken(*_: object) -> None:
            raise ValueError("of rank 1 alone")

        dcp.write = broken  # type: ignore[assignment]
    saves.start(3, big, {}, good=True)
    message = error_of(saves)
    assert message == ("of rank 1 alone" if rank == 1 else "saving step 3 failed on another rank"), message
    dist.barrier()
    os._exit(0)  # the thread of rank 0 waits on
