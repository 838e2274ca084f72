"""Run by test_training.py on one or several processes: train, and write down what happened."""

import json
import logging
from functools import partial
from pathlib import Path

import torch

from hekaton.checkpoint.runs import external_weights
from hekaton.config import load
from hekaton.distributed import process_group, this_process
from hekaton.metrics import set_up_logging
from hekaton.rules import check
from hekaton.trainer import Trainer


def train(
    flags: list[str], result: str, config: str | None = None, export_file_size: int | None = None
) -> None:
    """Train as ``hekaton train`` does; rank 0 writes losses by step, weights and messages to ``result``.

    :param export_file_size: bytes of one file of an export, at most; by default as in any run.
    """
    torch.set_num_threads(1)
    if export_file_size is not None:
        external_weights.WriteOptions = partial(
            external_weights.WriteOptions, max_shard_size=export_file_size
        )
    loaded = load([config] if config else [], flags)
    process = this_process()
    set_up_logging(process.rank, process.world_size)
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("hekaton").addHandler(handler)
    check(loaded, world_size=process.world_size, device_type=process.device.type)
    with process_group(process, loaded.config.comm, dump_folder=loaded.config.job.dump_folder):
        trainer = Trainer(loaded, process)
        losses, tokens = {}, {}
        train_step, next_step = trainer.train_step, trainer.loader.next_step

        def recorded_step():
            loss, grad_norm = train_step()
            losses[trainer.step] = trainer._metrics(loss, grad_norm)["loss"]
            return loss, grad_norm

        def recorded_batch():
            batch = next_step()
            pieces = [torch.empty_like(batch["tokens"]) for _ in range(trainer.dims.dp)]
            torch.distributed.all_gather(
                pieces, batch["tokens"], group=trainer.meshes.batch["dp"].get_group()
            )
            tokens[trainer.step] = torch.cat(pieces)
            return batch

        trainer.train_step, trainer.loader.next_step = recorded_step, recorded_batch
        initial = weights(trainer)
        trainer.run()
        final = weights(trainer)
    if process.rank == 0:
        torch.save({"losses": losses, "tokens": tokens, "initial": initial, "final": final}, result)
        Path(result).with_suffix(".json").write_text(json.dumps(messages))


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Every parameter, whole, put together from all stages of a pipeline."""
    mine = {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for part in trainer.model_parts
        for name, p in part.named_parameters()
    }
    everywhere: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, mine)
    return {name: tensor for part in everywhere for name, tensor in part.items()}
