"""Run by test_killed.py: runs are killed at moments of their saves, in forked processes, and started again.

A moment is an operation on the files of the checkpoint folder that is about to begin.
"""

import contextlib
import io
import json
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from hekaton.checkpoint import CheckpointManager
from hekaton.cli import main

killing = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("killing.py"))))

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


def state_of(folder: Path) -> str:
    """The checksum of all tensors of the last step: weights, optimizer, position in the data, random numbers."""
    manifest = json.loads((folder / "checkpoint" / "step-4" / "manifest.json").read_text())
    return manifest["files"]["__0_0.distcp"]["xxh3_128"]


def run(root: str) -> None:
    whole, folder = Path(root, "whole"), Path(root, "run")
    moments = killing.count_moments(partial(on_moments, whole), lambda: train(whole))
    outcomes = []
    for i in range(MOMENTS):
        shutil.rmtree(folder, ignore_errors=True)
        moment = 1 + i * (moments - 1) // (MOMENTS - 1)
        killing.kill_at(moment, partial(on_moments, folder), lambda: train(folder))
        said = killing.in_a_fork(lambda: train(folder))
        outcomes.append([state_of(folder) == state_of(whole), said])
    print(json.dumps(outcomes))


def lock(folder: str, until: str) -> None:
    """Hold the lock of a checkpoint folder until there is a file, then end as a program does."""
    CheckpointManager(Path(folder), describe={}).lock()
    print("locked", flush=True)
    while not Path(until).exists():
        time.sleep(0.01)
    sys.exit(0)
