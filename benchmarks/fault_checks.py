"""What ``[fault]`` costs: comparing replicas, and computing a microbatch twice, against the time of a step.

    torchrun --nproc_per_node 2 benchmarks/fault_checks.py [--steps 20] [flags of hekaton train]

The default is the debug model of Llama 3 with two replicas and one microbatch a step, of 4,096 tokens each;
``--training.global_batch_size`` makes more of them. Rank 0 times a step without and one with the replay in
turn: by the clock, and by the processor time of the process, which other work on the machine hardly changes.
A replay adds one more forward and backward, taken from the step without, and what it does beside, which is
timed by itself, since the difference of two steps has more noise. All are medians, ratios with their standard
error. Goals: comparing every 100 steps at most 1% of a step, replaying at most its share of one microbatch.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
                "--training.local_batch_size", "16",
                "--fault.compare_replicas_every", "1", "--fault.replay_every", "1", *flags,
            ],
        )  # fmt: skip
        check(loaded, world_size=process.world_size, device_type=process.device.type)
        with process_group(process, loaded.config.comm, dump_folder=folder):
            measure(Trainer(loaded, process), arguments.steps)


def measure(trainer: Trainer, steps: int) -> None:
    training = trainer.config.training
    microbatches = trainer._global_batch_size // (training.local_batch_size * trainer.dims.dp)
    plain, alone, replayed, beside, compared = [], [], [], [], []
    replay = trainer.faults.replay

    def time_alone(run: Callable[[], Any]) -> Any:
        result, took = clocked(trainer, run)
        alone.append(took)
        return result

    def time_beside(step: int) -> Callable[[Callable[[], Any]], Any]:
        def run_twice(run: Callable[[], Any]) -> Any:
            passes = []

            def one_pass() -> Any:
                result, took = clocked(trainer, run)
                passes.append(took)
                return result

            result, whole = clocked(trainer, lambda: replay(step)(one_pass))
            beside.append(tuple(whole[i] - sum(one[i] for one in passes) for i in range(2)))
            return result

        return run_twice

    for trainer.step in range(1, WARMUP + steps + 1):
        trainer.faults.replay = lambda step: time_alone
        plain.append(timed(trainer, trainer.train_step))
        trainer.faults.replay = time_beside
        replayed.append(timed(trainer, trainer.train_step))
        compared.append(timed(trainer, lambda: trainer.faults.after_step(trainer.step)))
    trainer.loader.close()
    if trainer.process.rank:
        return
    values = sum(parameter.numel() for part in trainer.model_parts for parameter in part.parameters())
    print(
        f"{values:,} parameters, {dist.get_world_size()} processes, {microbatches} microbatch(es) a step of "
        f"{training.local_batch_size * training.seq_len:,} tokens"
    )
    for number, what in enumerate(("clock", "processor time")):
        step, once, twice, more, comparing = (
            torch.tensor([times[number] for times in of_all[WARMUP:]], dtype=torch.float64)
            for of_all in (plain, alone, replayed, beside, compared)
        )
        print(f"{what}: a step takes {step.median() * 1e3:.1f} ms, a microbatch {once.median() * 1e3:.1f} ms")
        print(
            f"  comparing replicas {comparing.median() * 1e3:.1f} ms, "
            f"every 100 steps {comparing.median() / step.median() / 100:.2%} of step time"
        )
        print(
            f"  a replay in each step adds {middle((once + more) / step)} of a step, "
            f"{1 / microbatches:.0%} is the share of one of {microbatches} microbatches; every 10 steps a "
            "tenth"
        )
        print(
            f"    a pass and {middle(more / once)} of it for copies and comparison; as the difference of two "
            f"steps {middle((twice - step) / step)} of a step"
        )


def middle(ratios: torch.Tensor) -> str:
    """The median, and its standard error as of a normal distribution, from the median deviation."""
    median = ratios.median()
    error = 1.2533 * 1.4826 * (ratios - median).abs().median() / math.sqrt(len(ratios))
    return f"{median:.1%} ± {error:.1%}"


def timed(trainer: Trainer, run: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time, from where all processes are."""
    dist.barrier()
    return clocked(trainer, run)[1]


def clocked(trainer: Trainer, run: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What it returns, and the same seconds."""
    began = time.perf_counter(), time.process_time()
    result = run()
    if trainer.process.device.type == "cuda":
        torch.cuda.synchronize()
    return result, (time.perf_counter() - began[0], time.process_time() - began[1])


if __name__ == "__main__":
    main()
