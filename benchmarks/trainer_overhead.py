"""Time of a training step against a hand-written loop of the same model, optimizer and batches.

    python benchmarks/trainer_overhead.py [--steps 30] [--threads 2]

Both run in one process, a step of one after a step of the other. The trainer reads, tokenises and packs its
data as in any run; the loop's batches lie in memory. Prints the medians and their ratio (goal: at most 1.02).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from hekaton.building import build_meta, materialize
from hekaton.config import load
from hekaton.distributed import process_group, this_process
from hekaton.init import initialize
from hekaton.mesh import ParallelDims
from hekaton.rules import check
from hekaton.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "model_zoo/llama3/train_configs/debug_model.toml"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(
            [CONFIG],
            ["--job.dump_folder", folder, "--checkpoint.no-enable", "--metrics.no-enable_tensorboard"],
        )
        process = this_process()
        check(loaded, world_size=1, device_type=process.device.type)
        with process_group(process, loaded.config.comm, dump_folder=folder):
            measure(Trainer(loaded, process), arguments.steps)


def measure(trainer: Trainer, steps: int) -> None:
    config = trainer.config
    meta = build_meta(config, trainer.plugins, ParallelDims())
    model = meta.model
    materialize(model, trainer.process.device)
    initialize(model, meta.initializers, seed=0)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.lr,
        betas=(config.optimizer.beta1, config.optimizer.beta2),
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        fused=config.optimizer.implementation == "fused",
    )
    batches = [trainer.loader.next_step() for _ in range(steps)]
    batches = [batch | {"documents": (batch["positions"] == 0).cumsum(-1)} for batch in batches]
    trainer.loader.seek(torch.zeros_like(trainer.loader.cursor()))

    by_hand, trained = [], []
    for batch in batches:
        began = time.perf_counter()
        logits = model(batch["tokens"], batch["positions"], batch["documents"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        del logits
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        by_hand.append(time.perf_counter() - began)

        began = time.perf_counter()
        trainer.train_step()
        trained.append(time.perf_counter() - began)
    warmup = 3
    ratios = [b / a for a, b in zip(by_hand[warmup:], trained[warmup:], strict=True)]
    print(f"hand-written loop: {statistics.median(by_hand[warmup:]) * 1e3:8.1f} ms per step")
    print(f"trainer:           {statistics.median(trained[warmup:]) * 1e3:8.1f} ms per step")
    print(f"median ratio:      {statistics.median(ratios):8.3f}")


if __name__ == "__main__":
    main()
