"""What ``[fault]`` costs: comparing replicas, and computing a microbatch twice, against the time of a step.

    torchrun --nproc_per_node 2 benchmarks/fault_checks.py [--steps 20] [flags of hekaton train]

The default is the debug model of Llama 3 with two replicas. Medians of rank 0, whose steps are timed with
each check on and off in turn: by the clock, and by the processor time of the process, which other work on
the machine hardly changes. Goals: comparing every 100 steps at most 1% of a step, replaying at most its share
of one microbatch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from hekaton.config import load
from hekaton.distributed import process_group, this_process
from hekaton.rules import check
from hekaton.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "model_zoo/llama3/train_configs/debug_model.toml"
WARMUP = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    arguments, flags = parser.parse_known_args()
    process = this_process()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(
            [CONFIG],
            [
                "--job.dump_folder", folder, "--checkpoint.no-enable", "--metrics.no-enable_tensorboard",
                "--parallelism.data_parallel_replicate_degree", str(process.world_size),
                "--fault.compare_replicas_every", "1", "--fault.replay_every", "1", *flags,
            ],
        )  # fmt: skip
        check(loaded, world_size=process.world_size, device_type=process.device.type)
        with process_group(process, loaded.config.comm, dump_folder=folder):
            measure(Trainer(loaded, process), arguments.steps)


def measure(trainer: Trainer, steps: int) -> None:
    microbatches = trainer._global_batch_size // (trainer.config.training.local_batch_size * trainer.dims.dp)
    plain, replayed, compared = [], [], []
    replay = trainer.faults.replay
    for trainer.step in range(1, WARMUP + steps + 1):
        trainer.faults.replay = lambda step: None
        plain.append(timed(trainer, trainer.train_step))
        trainer.faults.replay = replay
        replayed.append(timed(trainer, trainer.train_step))
        compared.append(timed(trainer, lambda: trainer.faults.after_step(trainer.step)))
    trainer.loader.close()
    if trainer.process.rank:
        return
    values = sum(parameter.numel() for part in trainer.model_parts for parameter in part.parameters())
    print(f"{values:,} parameters, {dist.get_world_size()} processes, {microbatches} microbatch(es) a step")
    print(f"one microbatch is   {1 / microbatches:.1%} of a step")
    for number, what in enumerate(("clock", "processor time")):
        step, twice, comparing = (
            statistics.median(times[number] for times in of_all[WARMUP:])
            for of_all in (plain, replayed, compared)
        )
        print(f"{what}: a step takes {step * 1e3:.1f} ms")
        share = comparing / step / 100
        print(f"  comparing replicas {comparing * 1e3:.1f} ms, every 100 steps {share:.2%} of step time")
        print(f"  step with replay {twice * 1e3:.1f} ms, {twice / step - 1:+.1%} of a step")


def timed(trainer: Trainer, run: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time."""
    dist.barrier()
    began = time.perf_counter(), time.process_time()
    run()
    if trainer.process.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began[0], time.process_time() - began[1]


if __name__ == "__main__":
    main()
