"""One step as one of many ranks, on fake tensors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[1] / "model_zoo/llama3/train_configs"
SMALL = ["--training.seq_len", "64", "--training.local_batch_size", "4"]


def train(folder, config, world_size, *flags):
    return subprocess.run(
        [sys.executable, "-m", "hekaton", "train", str(CONFIGS / config), "--comm.mode", "fake_backend", *flags],
        cwd=folder,
        env={**os.environ, "NGPU": str(world_size), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )  # fmt: skip


def test_a_layout_of_64(tmp_path):
    degrees = ["--parallelism.tensor_parallel_degree", "2", "--parallelism.context_parallel_degree", "2"]
    done = train(tmp_path, "debug_model.toml", 64, *SMALL, *degrees)
    assert done.returncode == 0, done.stderr
    assert (
        "one step went through as rank 0 of 64 (pp 1, dp_replicate 1, dp_shard 16, cp 2, tp 2)" in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_layout_is_refused(tmp_path):
    done = train(tmp_path, "debug_model.toml", 8, *SMALL, "--parallelism.tensor_parallel_degree", "3")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "parallelism.tensor_parallel_degree = 3" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--parallelism.data_parallel_replicate_degree 2",
        "--parallelism.context_parallel_degree 2 --parallelism.context_parallel_strategy ring",
        "--parallelism.context_parallel_degree 2 --parallelism.context_parallel_strategy ulysses",
        "--parallelism.pipeline_parallel_degree 2 --parallelism.pipeline_parallel_schedule ZBVZeroBubble",
        "--parallelism.pipeline_parallel_degree 2 --parallelism.context_parallel_degree 2 "
        "--parallelism.tensor_parallel_degree 2",
        "--activation_checkpoint.mode selective --activation_checkpoint.selective_ac_option op",
        "--compile.enable --parallelism.tensor_parallel_degree 2",
        "--training.enable_cpu_offload",
        "--training.global_batch_size 64",
    ],
)
def test_every_kind_of_layout_goes_through(flags, tmp_path):
    done = train(tmp_path, "debug_model.toml", 8, *SMALL, *flags.split())
    assert done.returncode == 0, done.stderr
    assert "one step went through as rank 0 of 8" in done.stderr
    assert ("without dataset, tokenizer, compile" in done.stderr) == ("--compile.enable" in flags)


@pytest.mark.slow
def test_405b_on_512(tmp_path):
    done = train(tmp_path, "llama3_405b.toml", 512)
    assert done.returncode == 0, done.stderr
    # 405,853,388,800 parameters of 4 bytes on 512 ranks.
    assert "parameters           2.953 GiB" in done.stderr
