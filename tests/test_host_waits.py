"""A training step on CUDA: the host never waits for the device."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch

pytestmark = pytest.mark.cuda

SHAPES = ["--model.name", "llama3", "--model.tokenizer", "byte", "--training.seq_len", "256"]


@contextlib.contextmanager
def waiting_is_an_error():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("packing", ["documents", "concat"])
@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize(
    "recomputed",
    [["none"], ["full"], ["selective", "--activation_checkpoint.selective_ac_option", "op"]],
    ids=lambda flags: flags[-1],
)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_host_does_not_wait_within_a_step(tmp_path, packing, accumulated, recomputed, compiled):
    from hekaton.config import load
    from hekaton.distributed import process_group, this_process
    from hekaton.rules import check
    from hekaton.trainer import Trainer

    flags = [
        *SHAPES, "--training.packing", packing, "--training.local_batch_size", "2",
        "--training.global_batch_size", "4" if accumulated else "2",
        "--activation_checkpoint.mode", *recomputed, *(["--compile.enable"] if compiled else []),
        "--job.dump_folder", str(tmp_path),
    ]  # fmt: skip
    process = this_process()
    loaded = load([], flags)
    check(loaded, world_size=1, device_type="cuda")
    with process_group(process, loaded.config.comm, dump_folder=str(tmp_path)):
        trainer = Trainer(loaded, process)
        with contextlib.closing(trainer.loader):
            for _ in range(2):  # kernels are compiled, memory is taken
                trainer.train_step()
            torch.cuda.synchronize()
            with waiting_is_an_error():
                for _ in range(2):
                    loss, grad_norm = trainer.train_step()
            assert torch.isfinite(loss).item()
            assert torch.isfinite(grad_norm).item()
