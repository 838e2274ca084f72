"""Run by test_resharding.py: what is saved under each layout is loaded under others, and compared by its bits.

Gradients are made of the weights, element by element, so that one step of the optimizer gives the same numbers
under every layout: those that one process has.
"""

import json
import logging
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.tensors.state import model_tensors, optimizer_state, restore_optimizers
from hekaton.config import load
from hekaton.distributed import this_process
from hekaton.testing.distributed import shared_meshes
from hekaton.trainer import Trainer

# Widths and a vocabulary that 4 does not divide.
TINY = {"dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 36, "vocab_size": 262}
FLAGS = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--model.overrides", json.dumps(TINY), "--training.seq_len", "16", "--training.global_batch_size", "8",
    "--training.local_batch_size", "8", "--activation_checkpoint.mode", "none",
]  # fmt: skip


def run(
    layouts: dict[str, list[str]], sources: dict[str, list[str]], folder: str, saves: bool = True
) -> None:
    """Save under each of the layouts; then load under each of them what its sources wrote."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    logging.disable()
    with shared_meshes():
        trainers = {name: trained(flags, folder) for name, flags in layouts.items()}
        for name, trainer in trainers.items() if saves else ():
            save(trainer, Path(folder, name))
        reference = torch.load(Path(folder, "reference.pt"), weights_only=True)
        for name, trainer in trainers.items():
            for source in sources[name]:
                try:
                    load_and_compare(trainer, Path(folder, source), reference)
                except Exception as e:
                    raise AssertionError(f"saved under {source}, loaded under {name}") from e
    dist.destroy_process_group()


def trained(flags: list[str], folder: str) -> Trainer:
    """A run after one step of its optimizer."""
    loaded = load([], [*FLAGS, "--job.dump_folder", folder, *flags])
    trainer = Trainer(loaded, this_process())
    trainer.loader.close()
    with torch.no_grad():
        for part in trainer.model_parts:
            for parameter in part.parameters():
                parameter.grad = parameter * 0.5 + 0.25
    for optimizer in trainer.optimizers:
        optimizer.step()
    return trainer


def state_of(trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    optimizer, _ = optimizer_state(trainer.model_parts, trainer.optimizers)
    return {"model": model_tensors(trainer.model_parts), "optimizer": optimizer}


def save(trainer: Trainer, folder: Path) -> None:
    _, rest = optimizer_state(trainer.model_parts, trainer.optimizers)
    state = state_of(trainer)
    CheckpointManager(folder, describe={}).save(1, state, {"optimizer": rest})
    if dist.get_world_size() == 1:
        tensors = {
            part: {name: whole(tensor.detach()) for name, tensor in tensors.items()}
            for part, tensors in state.items()
        }
        torch.save(tensors, folder.parent / "reference.pt")


def load_and_compare(trainer: Trainer, folder: Path, reference: dict) -> None:
    """Every tensor is 0 before it is loaded, and afterwards the reference's; a rank compares its parts."""
    state = state_of(trainer)
    with torch.no_grad():
        for tensors in state.values():
            for tensor in tensors.values():
                tensor.zero_()
    loaded = CheckpointManager(folder, describe={}).load(state)
    restore_optimizers(trainer.model_parts, trainer.optimizers, state["optimizer"], loaded.info["optimizer"])
    seen = set()
    for part, tensors in state_of(trainer).items():
        for name, tensor in tensors.items():
            expected = reference[part][name]
            if isinstance(tensor, DTensor):
                mesh, placements = tensor.device_mesh, tensor.placements
                expected = distribute_tensor(expected, mesh, placements, src_data_rank=None).to_local()
                tensor = tensor.to_local()
            assert torch.equal(tensor, expected), f"{part}: {name}"
            seen.add((part, name))
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, seen)
    assert set().union(*everywhere) == {(part, name) for part in reference for name in reference[part]}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
