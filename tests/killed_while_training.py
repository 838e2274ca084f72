"""Run by test_killed.py: runs are killed at moments of their saves, in forked processes, and started again.

A moment is an operation on the files of the checkpoint folder that is about to begin.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# What a run imports in its course, before the forks: once instead of in each of them.
import torch._dynamo
import torch.distributed.fsdp  # noqa: F401

import hekaton.checkpoint.dcp
import hekaton.checkpoint.run
import hekaton.trainer  # noqa: F401
import hekaton_llama3.spec  # noqa: F401
from hekaton.cli import main

FLAGS = [
    "--model.tokenizer", "byte",
    "--model.overrides", '{"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 258}',
    "--training.steps", "4", "--training.seq_len", "16", "--training.local_batch_size", "2",
    "--training.mixed_precision_param", "float32", "--activation_checkpoint.mode", "none",
    "--lr_scheduler.warmup_steps", "0", "--checkpoint.enable", "--checkpoint.interval", "1",
    "--checkpoint.keep_latest_k", "2",
]  # fmt: skip
MOMENTS = 20


def on_moments(folder: Path, call: Callable[[], None]) -> None:
    """Have ``call`` called at every moment from now on."""
    operations = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
    inside = str(folder / "checkpoint") + "/step-"

    def hook(event: str, arguments: tuple) -> None:
        writes = event != "open" or str(arguments[1]).startswith("w")
        if event in operations and writes and str(arguments[0]).startswith(inside):
            call()

    sys.addaudithook(hook)


def train(folder: Path) -> str:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        assert main(["train", *FLAGS, "--job.dump_folder", str(folder)]) == 0, said.getvalue()
    return said.getvalue()


def in_a_fork(work: Callable[[], object]) -> tuple[int, object]:
    """Do the work in a forked process; its wait status, and its result."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(writing, json.dumps(repr(error)).encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    return os.waitpid(child, 0)[1], json.loads(text) if text else None


def counted(folder: Path) -> int:
    moments = 0

    def one_more() -> None:
        nonlocal moments
        moments += 1

    on_moments(folder, one_more)
    train(folder)
    return moments


def killed_at(moment: int, folder: Path) -> None:
    left = moment

    def kill() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    on_moments(folder, kill)
    train(folder)


def state_of(folder: Path) -> str:
    """The checksum of all tensors of the last step: weights, optimizer, position in the data, random numbers."""
    manifest = json.loads((folder / "checkpoint" / "step-4" / "manifest.json").read_text())
    return manifest["files"]["__0_0.distcp"]["xxh3_128"]


def run(root: Path) -> None:
    status, moments = in_a_fork(lambda: counted(root / "whole"))
    assert status == 0, moments
    outcomes = []
    folder = root / "run"
    for i in range(MOMENTS):
        shutil.rmtree(folder, ignore_errors=True)
        moment = 1 + i * (moments - 1) // (MOMENTS - 1)
        status, said = in_a_fork(lambda moment=moment: killed_at(moment, folder))
        assert os.WIFSIGNALED(status), f"not killed at moment {moment} of {moments}: {said}"
        status, said = in_a_fork(lambda: train(folder))
        assert status == 0, f"after moment {moment} of {moments}: {said}"
        outcomes.append([state_of(folder) == state_of(root / "whole"), said])
    print(json.dumps(outcomes))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
