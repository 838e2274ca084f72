"""Run by test_python_api.py in a process of its own: what ``import hekaton`` offers."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import hekaton
from hekaton import loading
from hekaton.checkpoint.disk.step_folders import StepFolders
from hekaton.stop_signals import ONE_SIGNAL
from hekaton.trainer import Trainer
from hekaton.urls import UrlPath

RUN = """\
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "byte"

[model.overrides]
dim = 32
n_layers = 2
n_heads = 2
n_kv_heads = 1
hidden_dim = 64
vocab_size = 259

[training]
dataset = "python_stdlib"
seq_len = 32
local_batch_size = 2
steps = 4
mixed_precision_param = "float32"

[lr_scheduler]
warmup_steps = 0

[metrics]
log_freq = 1
"""


def write() -> None:
    Path("run.toml").write_text(RUN)


def twice() -> None:
    """Two trainings, one after the other; what they gave goes to ``losses.json``. The second is called where
    nothing that torch computes has gradients, or values, or the precision that is asked for."""
    write()
    runs = []
    for name, inside in (("first", contextlib.nullcontext()), ("second", torch.inference_mode())):
        with inside, torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "second"):
            steps = {"training.steps": np.int64(4), "checkpoint.enable": True}
            runs.append(hekaton.train("run.toml", job={"dump_folder": name}, **steps))
            assert torch.get_default_device().type == ("cpu" if name == "first" else "meta")
        torch.set_default_device("meta")
    torch.set_default_device("cpu")
    losses = [[row["loss"] for row in run.metrics] for run in runs]
    Path("losses.json").write_text(json.dumps(losses))
    one, two = runs
    assert one.step == 4
    assert one.stopped == ()
    assert str(one) == f"run in first, step 4, loss {losses[0][-1]:.4f}"
    assert one.config["model"]["overrides"]["dim"] == 32
    assert one.tokenizer.decode(one.tokenizer.encode_batch(["abc"])[0].tolist()) == "abc"
    same(one.model, two.model)
    assert not one.model.training

    loaded = hekaton.load(one.folder)
    same(loaded.model, one.model)
    earlier = hekaton.train("run.toml", job={"dump_folder": "third"}, training={"steps": 2})
    later = hekaton.train(
        "run.toml", job={"dump_folder": "first"}, checkpoint={"enable": True}, training={"steps": 5}
    )
    assert [row["step"] for row in later.metrics] == [5]
    assert not torch.equal(earlier.model.output.weight, one.model.output.weight)
    same(hekaton.load(one.folder, step=4, dtype=torch.float32).model, one.model)

    found = hekaton.runs(".")
    assert [one.folder.name for one in found] == ["first", "second", "third"]
    assert [row["step"] for row in found[0].metrics] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in found[1].metrics] == losses[1]
    assert [step.number for step in found[0].steps] == [4, 5]
    assert all(step.good for step in found[0].steps)
    assert found[0].config["training"]["steps"] == 5
    assert found[2].steps == []
    assert found[0].restarts == [4]
    hekaton.train("run.toml", job={"dump_folder": "fourth"}, checkpoint={"enable": True, "folder": "kept"})
    same(hekaton.load("fourth").model, one.model)
    assert [step.number for step in hekaton.runs("fourth")[0].steps] == [4]


def from_elsewhere() -> None:
    """Behind a URL, and on two processes."""
    write()
    run = hekaton.train("run.toml", checkpoint={"enable": True, "interval": 2})
    shutil.copytree("outputs/checkpoint", "moved")
    url = f"file://{Path.cwd()}/moved"
    loaded = hekaton.load(url)
    same(loaded.model, run.model)
    assert loaded.source == f"{url}/step-4"
    same(hekaton.load(url, step=2).model, hekaton.load("moved/step-2").model)
    fails(lambda: hekaton.load(f"file://{Path.cwd()}/nowhere"), "nowhere")

    Path("live").mkdir()
    shutil.copytree("moved/step-2", "live/step-2")
    opened = loading.open_model

    def removed(step: Path) -> object:
        """As by a run that saves its next step and removes the one that was found."""
        loading.open_model = opened
        shutil.copytree("moved/step-4", "live/step-4")
        shutil.rmtree(step)
        return opened(step)

    loading.open_model = removed
    same(hekaton.load("live").model, run.model)
    listed = UrlPath.files

    def removed_there(step: UrlPath) -> dict[str, int]:
        names = listed(step)
        UrlPath.files = listed
        shutil.copytree("moved/step-4", "live/step-4")
        shutil.rmtree("live/step-2")
        return names

    shutil.copytree("moved/step-2", "live/step-2")
    shutil.rmtree("live/step-4")
    UrlPath.files = removed_there
    assert hekaton.load(f"file://{Path.cwd()}/live").source.endswith("/live/step-4")
    damage = next(Path("live/step-4").glob("*.distcp"))
    damage.write_bytes(damage.read_bytes()[:-1])
    damaged = f"file://{Path.cwd()}/live/step-4"
    fails(lambda: hekaton.load(damaged), damaged)
    fails(lambda: hekaton.load("nosuch://bucket/run"), "fsspec knows no file system 'nosuch'")


def sharded(folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    whole, found = hekaton.load(folder), StepFolders.found
    if torch.distributed.get_rank() == 1:  # sees what there was before the last save
        StepFolders.found = lambda self: dict(list(found(self).items())[:-1])
    for place in (f"file://{folder}", folder):
        parts = hekaton.load(place, mesh=mesh)
        assert parts.source == whole.source.replace(folder, place)
    local = sum(parameter.to_local().numel() for parameter in parts.model.parameters())
    count = sum(parameter.numel() for parameter in whole.model.parameters())
    assert abs(local - count / 2) < 0.01 * count
    ids = torch.tensor([whole.encode("def f(")])
    with torch.no_grad():
        assert torch.equal(parts.model(ids), whole.model(ids))
    fails(lambda: hekaton.load(folder, mesh=torch.distributed.init_device_mesh("cpu", (2, 1))), "of one dim")
    torch.distributed.barrier()  # rank 0 holds the store, by which rank 1 may still make the groups of the mesh
    torch.distributed.destroy_process_group()


def initial_weights() -> None:
    write()
    hekaton.train("run.toml", debug={"seed": 7}, checkpoint={"enable": True, "create_seed_checkpoint": True})
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 64, "vocab_size": 259}
    built = hekaton.build("llama3", "debugmodel", seed=7, **sizes)
    same(built, hekaton.load("outputs/checkpoint").model)
    other = hekaton.build("llama3", "debugmodel", seed=8, **sizes)
    assert not torch.equal(built.output.weight, other.output.weight)
    on_meta = hekaton.build("llama3", "debugmodel", device="meta", dtype=torch.bfloat16)
    assert on_meta.output.weight.is_meta
    assert on_meta.output.weight.dtype == torch.bfloat16


def same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    assert type(one) is type(other)
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name]), name


def state() -> dict[str, object]:
    """What a run could leave changed in its process."""
    log = logging.getLogger("hekaton")
    return {
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
        ),
        "precision": torch.get_float32_matmul_precision(),
        "generators": (
            random.getstate(),
            repr(np.random.get_state()),
            torch.get_rng_state().tolist(),
        ),
        "logger": (list(log.handlers), log.level, log.propagate),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wakeup": signal.set_wakeup_fd(-1),
        "environment": dict(os.environ),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "garbage": (gc.isenabled(), gc.get_debug(), gc.get_threshold()),
        "warnings": list(warnings.filters),
        "folder": os.getcwd(),
        "path": list(sys.path),
        # Progress bars of datasets keep one for the process.
        "threads alive": {thread.name for thread in threading.enumerate()} - {"tqdm_monitor"},
        "process group": torch.distributed.is_initialized(),
    }


LEAVES = """\
import gc

import torch
from hekaton.contributions import hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_run_ended(step, error):
    gc.disable()
    torch.set_default_dtype(torch.bfloat16)
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
"""
"""A plugin that leaves behind what the run itself does not."""


def no_traces() -> None:
    write()
    Path("leaves.py").write_text(LEAVES)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")  # by torch.compile
    torch.manual_seed(3)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    before = state()
    options = {
        "debug": {"deterministic": True, "seed": 1}, "comm": {"trace_buf_size": 0},
        "training": {"float32_matmul_precision": "high", "dataloader": {"num_workers": 1}},
        "checkpoint": {"enable": True}, "compile": {"enable": True, "backend": "eager"},
        "plugins": {"load": ["leaves.py"]},
    }  # fmt: skip
    hekaton.train("run.toml", **options)
    check_state(before)
    other = options | {"model": {"overrides": {"dim": 64}}, "training.steps": 5}
    for wrong in ({"training": {"stesp": 1}}, {"job": {"dump_folder": "run.toml"}}, other):
        with pytest.raises(hekaton.HekatonError, match=r"stesp|cannot write|does not fit this run"):
            hekaton.train("run.toml", **wrong)
        check_state(before)
    assert not Path("outputs/checkpoint/lock.json").exists()


def check_state(before: dict[str, object]) -> None:
    after = state()
    changed = {name: (was, after[name]) for name, was in before.items() if after[name] != was}
    assert not changed, changed


def interrupted() -> None:
    """Ctrl-C in the middle of a run of many steps."""
    write()
    log = logging.getLogger("hekaton")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts in the background ignores it
    threading.Thread(target=interrupt, daemon=True).start()
    run = hekaton.train("run.toml", training={"steps": 100_000}, checkpoint={"enable": True})
    assert 0 < run.step < 100_000
    assert run.stopped == ("received SIGINT",)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    (saved,) = hekaton.runs(".")[0].steps if hekaton.runs(".") else hekaton.runs("outputs")[0].steps
    assert saved.number == run.step
    assert log.handlers == []


def interrupted_twice() -> None:
    """Ctrl-C again while the step in hand takes long: as in a notebook, the process goes on."""
    write()
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def slow(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(ONE_SIGNAL + 0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", slow)
        hekaton.train("run.toml", checkpoint={"enable": True})
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert threading.active_count() == 1
    assert hekaton.train("run.toml", checkpoint={"enable": True}, training={"steps": 2}).step == 2


def interrupt() -> None:
    metrics = Path("outputs/metrics.jsonl")
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def memory() -> None:
    """Ten trainings; the memory after two of them, and after ten. Models are small beside the libraries, so
    tensors are counted as well."""
    write()

    def held() -> tuple[int, int]:
        gc.collect()
        tensors = sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())
        return int(Path("/proc/self/statm").read_text().split()[1]), tensors

    after = []
    for number in range(10):
        hekaton.train("run.toml", job={"dump_folder": f"run-{number}"}, training={"steps": 2})
        after.append(held())
    threads = threading.active_count()
    assert threads == 1, threading.enumerate()
    assert after[-1][0] < 1.05 * after[1][0], after
    assert after[-1][1] == after[1][1], after


def errors() -> None:
    write()
    fails(lambda: hekaton.train("nothing.toml"), "nothing.toml")
    fails(lambda: hekaton.train("run.toml", model={"name": "lama3"}), "did you mean 'llama3'?")
    fails(lambda: hekaton.train("run.toml", **{"training.steps": 0}), "the argument training.steps")
    fails(lambda: hekaton.train("run.toml", comm={"mode": "fake_backend"}), "dry run")
    fails(lambda: hekaton.load("nowhere"), "there is no 'nowhere'")
    fails(lambda: hekaton.build("llama3", "debugmodl"), "debugmodel")
    fails(lambda: hekaton.build("llama3", "debugmodel", dimm=3), "model.overrides.dimm")
    fails(lambda: hekaton.build("llama3", "debugmodel", dtype="int8"), "dtype = int8")
    fails(lambda: hekaton.runs("nowhere"), "there is no folder 'nowhere'")
    hekaton.train("run.toml", checkpoint={"enable": True}, training={"steps": 1})
    fails(lambda: hekaton.load("outputs", step=9), "there are: 1")
    fails(lambda: hekaton.load("outputs", leave_out=["vision"]), "leave_out")


def fails(call: Callable[[], object], said: str) -> None:
    with pytest.raises(hekaton.HekatonError, match=re.escape(said)):
        call()
