"""What a process of a test costs: a fresh interpreter beside one that is forked from the warm server.

    python benchmarks/test_launch.py

Prints a table of wall times, the median of some runs, and what the server took to start.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hekaton.testing import run_command, run_processes

RUNS = {True: 3, False: 7}
CONFIG = Path(__file__).resolve().parents[1] / "model_zoo" / "llama3" / "train_configs" / "debug_model.toml"
TWO_STEPS = [
    "train", str(CONFIG), "--training.steps", "2", "--training.seq_len", "32",
    "--training.local_batch_size", "1", "--checkpoint.no-enable",
    "--metrics.no-enable_tensorboard", "--lr_scheduler.warmup_steps", "0",
    "--model.overrides", '{"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48}',
]  # fmt: skip


def train(processes: int) -> Callable[..., None]:
    def run(*, fresh: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            done = run_command(*TWO_STEPS, processes=processes, cwd=folder, fresh=fresh)
        assert done.returncode == 0, done.stderr

    return run


def one_step(*, fresh: bool) -> None:
    run_processes(__file__, "shard_and_step", processes=4, fresh=fresh)


def shard_and_step() -> None:
    """On each rank: a process group, FSDP, one step of AdamW."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    model = torch.nn.Linear(16, 16)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    dist.destroy_process_group()


CASES = {
    "`hekaton train`, 2 steps, one process": train(1),
    "the same on 4 ranks (gloo, FSDP), without torchrun": train(4),
    "4 ranks: process group, `fully_shard`, one AdamW step": one_step,
}


def seconds(work: Callable[..., None], *, fresh: bool) -> float:
    began = time.perf_counter()
    work(fresh=fresh)
    return time.perf_counter() - began


def main() -> None:
    began = time.perf_counter()
    run_command("--version")
    print(f"server: {time.perf_counter() - began:.1f} s, once a test run", file=sys.stderr)
    print("| | fresh interpreters | forked from a warm server |")
    print("|---|---|---|")
    for name, work in CASES.items():
        medians = [
            statistics.median(seconds(work, fresh=fresh) for _ in range(RUNS[fresh]))
            for fresh in (True, False)
        ]
        print(f"| {name} | {medians[0]:.2f} s | {medians[1]:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
