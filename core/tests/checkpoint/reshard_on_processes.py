"""Run on several processes by test_reshard.py."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.folders import folder_at
from hekaton.checkpoint.disk.lock import Holder, _started
from hekaton.checkpoint.tensors.state import model_tensors, optimizer_state, restore_optimizers, rng_tensors
from hekaton.errors import CheckpointError


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    """Widths that 2 and 4 do not divide, a scalar-sized bias that leaves ranks empty, tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 5)
        self.layers = nn.ModuleList([Block(5) for _ in range(2)])
        self.output = nn.Linear(5, 13, bias=False)
        self.output.weight = self.embedding.weight
        self.head = nn.Linear(5, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(x).logsumexp(-1) + self.head(x).squeeze(-1)


def build(seed: int, *, sharded: bool) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Model()
    if sharded:
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
        for module in model.modules():
            if hasattr(module, "set_gradient_divide_factor"):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(model: Model, optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randint(0, 13, (4, 7))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()
        for name, tensor in tensors.items()
    }


def manager_of(folder: Path, by: int) -> CheckpointManager:
    """Where ``by`` processes save; those of two are written and read through fsspec."""
    return CheckpointManager(folder_at(f"{'file://' if by == 2 else ''}{folder}/by-{by}"), describe={})


def save(folder: Path) -> None:
    """Train, save, and beside it what ``torch.save`` keeps of the full tensors."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    model, optimizer = build(0, sharded=ranks > 1)
    train(model, optimizer, steps=3)
    tensors, rest = optimizer_state([model], [optimizer])
    parts = {"model": model_tensors([model]), "optimizer": tensors, "rng": rng_tensors(rank)}
    info = {"optimizer": rest, "ranks": {str(rank): rank * 10}, "rank": rank}
    manager_of(folder, ranks).save(3, parts, info)
    reference = {part: whole(parts[part]) for part in ("model", "optimizer")}
    if rank == 0:
        torch.save(reference, folder / f"by-{ranks}.pt")


def load(folder: Path, by: int) -> None:
    """Load what ``by`` processes saved, compare every bit, and take a step with it."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    model, optimizer = build(1, sharded=ranks > 1)
    tensors, _ = optimizer_state([model], [optimizer])
    parts = {"model": model_tensors([model]), "optimizer": tensors, "rng": rng_tensors(rank)}
    loaded = manager_of(folder, by).load(parts, optional=("rng",))
    assert loaded is not None
    assert loaded.parts == ({"model", "optimizer", "rng"} if by == ranks else {"model", "optimizer"})
    assert loaded.info["ranks"] == {str(other): other * 10 for other in range(by)}
    assert loaded.info["rank"] == 0
    restore_optimizers([model], [optimizer], tensors, loaded.info["optimizer"])
    reference = torch.load(folder / f"by-{by}.pt", weights_only=True)
    state = {"model": model_tensors([model]), "optimizer": optimizer_state([model], [optimizer])[0]}
    for part, expected in reference.items():
        actual = whole(state[part])
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(actual[name], tensor), name
    assert "optimizer.layers.1.up.weight.exp_avg".removeprefix("optimizer.") in reference["optimizer"]
    train(model, optimizer, steps=1)
    stepped = optimizer_state([model], [optimizer])[0]
    assert {t.item() for name, t in stepped.items() if name.endswith(".step")} == {4.0}


class Mixture(nn.Module):
    """Experts stacked in one tensor, beside what all tokens go through."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(6, 7)
        self.router = nn.Linear(6, 8, bias=False)
        self.experts = nn.Module()
        self.experts.w1 = nn.Parameter(torch.randn(8, 6, 10))
        self.experts.w2 = nn.Parameter(torch.randn(8, 10, 6))


# Ways to lay a mixture out on four processes: the mesh of the dense parameters (sharded, or copies of shards), the
# experts' (efsdp, ep), and the dim in which the experts of an ep rank are sharded again.
MIXTURES = {
    "ep2": ((4,), (2, 2), 0),
    "ep4": ((4,), (1, 4), 0),
    "ep1": ((4,), (4, 1), 0),
    "ep2-hsdp": ((2, 2), (2, 2), 1),
}


def build_mixture(layout: str, seed: int) -> tuple[Mixture, torch.optim.Optimizer]:
    """A model after one step, whose gradients are made of its weights: the same numbers under every layout."""
    torch.manual_seed(seed)
    model = Mixture()
    if layout != "single":
        shape, sparse_shape, dim = MIXTURES[layout]
        sparse = init_device_mesh("cpu", sparse_shape, mesh_dim_names=("efsdp", "ep"))
        for name, weight in list(model.experts.named_parameters()):
            cut = distribute_tensor(weight.detach(), sparse["ep"], [Shard(0)], src_data_rank=None)
            model.experts.register_parameter(name, nn.Parameter(cut))
        fully_shard(model.experts, mesh=sparse["efsdp"], shard_placement_fn=lambda _: Shard(dim))
        names = ("replicate", "shard")[-len(shape) :]
        fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, foreach=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.grad = parameter * 0.5 + 0.25
    optimizer.step()
    return model, optimizer


def save_mixture(folder: Path, layout: str) -> None:
    model, optimizer = build_mixture(layout, 0)
    tensors, rest = optimizer_state([model], [optimizer])
    parts = {"model": model_tensors([model]), "optimizer": tensors}
    CheckpointManager(folder / layout, describe={}).save(1, parts, rest)
    if layout == "single":
        torch.save({part: whole(parts[part]) for part in parts}, folder / "mixture.pt")


def load_mixture(folder: Path, layout: str) -> None:
    """Load what each layout saved, and compare every bit with one process."""
    model, optimizer = build_mixture(layout, 1)
    reference = torch.load(folder / "mixture.pt", weights_only=True)
    for source in ("single", *MIXTURES):
        tensors, _ = optimizer_state([model], [optimizer])
        parts = {"model": model_tensors([model]), "optimizer": tensors}
        with torch.no_grad():
            for tensor in [tensor for part in parts.values() for tensor in part.values()]:
                tensor.zero_()
        loaded = CheckpointManager(folder / source, describe={}).load(parts)
        assert loaded is not None
        restore_optimizers([model], [optimizer], tensors, loaded.info)
        state = {"model": model_tensors([model]), "optimizer": optimizer_state([model], [optimizer])[0]}
        for part, expected in reference.items():
            actual = whole(state[part])
            assert actual.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(actual[name], tensor), f"{source} to {layout}: {part}, {name}"


def mixtures(folder: str) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for layout in MIXTURES:
        save_mixture(Path(folder), layout)
    for layout in MIXTURES:
        load_mixture(Path(folder), layout)
    dist.destroy_process_group()


def on_processes(folder: str, loads: list[int], saves: bool) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    if saves:
        save(Path(folder))
    for by in loads:
        load(Path(folder), by)
    dist.destroy_process_group()


def trouble(folder: str) -> None:
    """An error on one of two ranks is raised on both."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    root = Path(folder)
    logging.basicConfig(level=logging.INFO)

    def error_of(work: Any, *arguments: Any, **keywords: Any) -> str:
        with pytest.raises(CheckpointError) as error:
            work(*arguments, **keywords)
        assert error.value.rank == rank
        return str(error.value)

    # Only rank 1's disk is full.
    mine = {"model": {f"of_rank_{rank}": torch.ones(1 << 16)}}
    manager = CheckpointManager(root / "full", describe={})
    manager.save(1, mine, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    message = error_of(manager.save, 2, mine, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message == f"cannot write the checkpoint {root}/full/step-2: File too large (rank 1)", message
    assert sorted(path.name for path in (root / "full").iterdir()) == ["step-1"]

    # Rank 0 alone works on the folders.
    (root / "file").touch()
    dist.barrier()
    manager = CheckpointManager(root / "file", describe={})
    message = error_of(manager.save, 1, mine, {})
    assert message == f"cannot write the checkpoint {root}/file/step-1: Not a directory", message

    # The file of rank 1 is damaged: rank 0 and rank 1 pass the step over together.
    manager = CheckpointManager(root / "full", describe={})
    assert manager.load(mine)
    manager.save(5, {"model": {name: tensor * 5 for name, tensor in mine["model"].items()}}, {})
    if rank == 0:
        path = root / "full" / "step-5" / "__1_0.distcp"
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
    dist.barrier()
    into = {"model": {name: torch.zeros_like(tensor) for name, tensor in mine["model"].items()}}
    loaded = CheckpointManager(root / "full", describe={}).load(into)
    assert loaded is not None
    assert loaded.step == 1
    assert into["model"][f"of_rank_{rank}"].unique().tolist() == [1.0]
    message = error_of(CheckpointManager(root / "full", describe={}).load, into, step=5)
    assert "__1_0.distcp was changed or damaged" in message

    # A NaN on rank 1 alone, in a tensor that both have shards of.
    weight = distribute_tensor(torch.ones(4), init_device_mesh("cpu", (2,)), [Shard(0)])
    if rank == 1:
        weight.to_local()[0] = float("nan")
    manager = CheckpointManager(root / "nan", describe={})
    manager.save(1, {"model": {"weight": weight}}, {})
    message = error_of(manager.load, {"model": {"weight": weight}})
    assert "step-1: its loss or its weights were not finite" in message, message

    # Another run has the folder: rank 0 alone looks, and both are told.
    if rank == 0:
        other = dataclasses.replace(Holder.me(), pid=os.getppid(), started=_started(os.getppid()) or "")
        (root / "nan" / "lock.json").write_text(json.dumps(dataclasses.asdict(other)))
    dist.barrier()
    message = error_of(CheckpointManager(root / "nan", describe={}).lock)
    assert f"is in use by another run: process {os.getppid()} on" in message, message

    # A tensor that rank 1 alone wants and nobody saved; what only the other rank wants is not "unwanted".
    wanted = dict(into["model"])
    if rank == 1:
        wanted["head"] = torch.zeros(1)
    message = error_of(CheckpointManager(root / "full", describe={}).load, {"model": wanted})
    assert "not in the checkpoint (1): head" in message
    assert "only in the checkpoint" not in message
    dist.destroy_process_group()
