"""A seed checkpoint, made by one process, is what every layout starts from, and loads under every layout; what
a layout exports at the end is the same model."""

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from hekaton.testing.distributed import run_processes

SCRIPT = Path(__file__).with_name("training_on_processes.py")
FLAGS = [
    "--model.overrides", '{"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48}',
    "--training.seq_len", "32", "--training.local_batch_size", "2", "--training.global_batch_size", "4",
    "--training.steps", "1", "--training.mixed_precision_param", "float32", "--lr_scheduler.warmup_steps", "0",
    # A rate that moves no weight.
    "--optimizer.lr", "1e-30", "--optimizer.weight_decay", "0",
]  # fmt: skip
LAYOUTS = {
    "one process": (1, []),
    "FSDP and TP": (
        4, ["--parallelism.data_parallel_shard_degree", "2", "--parallelism.tensor_parallel_degree", "2"],
    ),
    "PP and CP": (
        4, ["--parallelism.pipeline_parallel_degree", "2", "--parallelism.context_parallel_degree", "2",
            "--training.local_batch_size", "4"],
    ),
}  # fmt: skip


def weights(folder: Path, when: str, layout: str, *flags: str) -> dict[str, torch.Tensor]:
    """Those that a run under the layout has, whole, before it loads (``initial``) or at its end (``final``)."""
    processes, degrees = LAYOUTS[layout]
    run_processes(
        SCRIPT, "train", processes=processes, timeout=100,
        flags=[*FLAGS, *degrees, "--job.dump_folder", str(folder / "run"), *flags],
        result=str(folder / "result.pt"),
    )  # fmt: skip
    return torch.load(folder / "result.pt", weights_only=True)[when]


def whole(step: Path) -> dict[str, torch.Tensor]:
    dcp_to_torch_save(step, step.with_suffix(".pt"))
    return torch.load(step.with_suffix(".pt"), weights_only=True)


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "layout",
    ["one process", *(pytest.param(name, marks=pytest.mark.slow) for name in ("FSDP and TP", "PP and CP"))],
)
def test_a_seed_checkpoint_is_what_every_layout_starts_from(tmp_path, layout):
    weights(
        tmp_path, "initial", "one process", "--checkpoint.enable", "--checkpoint.create_seed_checkpoint",
        "--debug.seed", "5",
    )  # fmt: skip
    folder = tmp_path / "run/checkpoint"
    seed = whole(folder / "step-0")

    assert same(weights(tmp_path, "initial", layout, "--debug.seed", "5"), seed)
    # The run's own initial weights are others.
    loaded = weights(
        tmp_path, "final", layout, "--checkpoint.enable", "--debug.seed", "6",
        "--checkpoint.last_save_model_only", "--checkpoint.export_dtype", "bfloat16",
    )  # fmt: skip
    assert same(loaded, seed)
    exported = whole(folder / "step-1")
    assert same(exported, {name: tensor.bfloat16() for name, tensor in seed.items()})
