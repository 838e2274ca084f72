"""Four ranks on two machines, of which some have something else: run by test_handshake.py."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from hekaton.config import load
from hekaton.errors import ConfigError, ConfigErrors, HekatonError
from hekaton.identity import code, handshake, subjects, together
from hekaton.identity.handshake import agree
from hekaton.identity.subjects import Subject, of_start

RANK = int(os.environ["RANK"])


def run(folder: str) -> None:
    dist.init_process_group("gloo")
    os.environ["LOCAL_RANK"] = str(RANK % 2)
    handshake.platform.node = lambda: "ab"[RANK // 2]  # type: ignore[assignment]
    root, said, logged = Path(folder), {}, Logged()
    logging.getLogger("hekaton").addHandler(logged)
    counted: dict[str, int] = {}
    for name in ("isend", "all_reduce", "all_gather_object"):
        setattr(dist, name, counting(getattr(dist, name), counted))

    def compared(*flags: str) -> Callable[[], None]:
        loaded = load([], flags)
        return lambda: agree(lambda: of_start(loaded.config, loaded.plugins, torch.device("cpu")))

    on = RANK.__eq__
    said["equal"] = told(compared())
    said["exchanges"] = dict(counted)
    said["one field"] = told(compared("--optimizer.lr", "2e-3" if on(3) else "8e-4"))
    several = {
        "optimizer.lr": "0.5", "training.steps": "7", "training.seq_len": "16", "debug.seed": "3",
        "checkpoint.interval": "2", "training.mixed_precision_param": "float64",
        "model.overrides.n_layers": "1", "model.overrides.hidden_dim": "64",
    }  # fmt: skip
    flags = [word for name, value in several.items() for word in (f"--{name}", value)]
    said["a machine"] = told(compared(*(flags if RANK > 1 else ())))
    free = [
        "--job.dump_folder", f"out{RANK}", "--training.dataset_path", f"data{RANK}",
        "--training.dataloader.num_workers", str(RANK), "--metrics.loggers", "tensorboard" if on(0) else "",
    ]  # fmt: skip
    said["free fields"] = told(compared(*free))
    said["a value each"] = told(compared("--training.steps", str(100 + RANK)))
    handshake.MOST_GROUPS = 2
    said["too many values"] = told(compared("--training.steps", str(100 + RANK)))
    handshake.MOST_GROUPS = 8

    with own_plugin(root / f"code{RANK % 2}", RANK % 2) as plugin:
        said["source"] = told(compared("--plugins.load", str(plugin)))
    said["source of earlier cases"] = told(compared())
    version = code.version_of
    code.version_of = lambda name: (  # type: ignore[assignment]
        "9.9" if (name, RANK) in (("hekaton", 2), ("rich", 1)) else version(name)
    )
    logged.lines.clear()
    said["versions"] = told(compared())
    code.version_of = lambda name: "9.9" if (name, RANK) == ("rich", 1) else version(name)  # type: ignore[assignment]
    logged.lines.clear()
    said["a version that computes nothing"] = [told(compared()), logged.lines.copy() if on(0) else []]
    code.version_of = version

    with patch.dict(os.environ, LOCAL_WORLD_SIZE="1" if on(3) else "3"):
        logged.lines.clear()
        said["machines"] = [told(compared()), logged.lines.copy() if on(0) else []]

    with patch.object(subjects, "MULTIPLIED", (64, 128 if on(2) else 512)):
        said["products"] = told(compared())
    with patch.object(torch, "get_num_threads", lambda: 2 if on(3) else 1):
        said["threads"] = told(compared())
    with patch.object(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2" if on(1) else "AVX512"):
        said["instructions"] = told(compared())
    normal_ = torch.Tensor.normal_
    if on(2):  # as torch draws without AVX2, which multiplies and adds in another order
        torch.Tensor.normal_ = lambda self, **given: normal_(self, **given).mul_(1 + 1e-7)  # type: ignore[method-assign]
    said["draws"] = told(compared())
    torch.Tensor.normal_ = normal_  # type: ignore[method-assign]
    own_locale = {"PYTHONHASHSEED": str(RANK), "LC_ALL": "C" if on(1) else "C.UTF-8"}
    with patch.dict(os.environ, own_locale):
        said["locale"] = told(compared())

    schedule = root / f"schedule{RANK // 2}"
    schedule.mkdir(exist_ok=True)
    (schedule / "own.csv").write_text("F0,F1\n" if RANK > 1 else "F0,B0\n", encoding="utf-8")
    with contextlib.chdir(schedule):
        said["schedule"] = told(compared("--parallelism.pipeline_parallel_schedule_csv", "own.csv"))

    weights = root / f"weights{RANK // 2}"
    weights.mkdir(exist_ok=True)
    (weights / "a.bin").write_bytes(b"12345" if RANK > 1 else b"12346")
    (weights / "b.bin").write_bytes(b"the same")
    start = ("--checkpoint.enable", "--checkpoint.initial_load_path", str(weights))
    said["initial weights"] = told(compared(*start))
    (weights / "b.bin").write_bytes(bytes(10**6) if RANK < 2 else bytes(999_999) + b"1")
    start = ("--checkpoint.enable", "--checkpoint.initial_load_path", f"file://{weights}")
    said["initial weights behind a URL"] = told(compared(*start))
    imported = [{"torchao": "0.18"}, {"datasets": "5.2", "torchao": "0.18"}, {}, {"torchao": "0.17"}]
    optional = Subject(name="imported", values=imported[RANK], optional=True)
    said["imported"] = told(lambda: agree(lambda: [optional]))
    said["imported by some"] = told(
        lambda: agree(lambda: [replace(optional, values={} if on(2) else imported[0])])
    )
    device = Subject(name="device", values={"device": "cpu" if on(0) else "cuda"})
    said["device"] = told(lambda: agree(lambda: [device]))
    said["no say"] = told(
        lambda: agree(lambda: [Subject(name="of the last", values={"a": 1} if on(3) else None)])
    )
    said["other subjects"] = told(lambda: agree(lambda: [device] * (1 if RANK else 0)))

    said["one cannot"] = told(
        lambda: together.together(lambda: cannot(ConfigError("no such file", hint="look"), 2))
    )
    both = ConfigErrors([ConfigError("first", origin="a.toml"), ConfigError("second")])
    said["all cannot"] = told(lambda: together.together(lambda: cannot(both, RANK)))
    said["all can"] = told(lambda: together.together(lambda: None))
    (root / f"said-{RANK}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def cannot(error: HekatonError, rank: int) -> None:
    if rank == RANK:
        raise error


def told(action: Callable[[], object]) -> str:
    try:
        action()
    except HekatonError as error:
        return str(error) if error.everywhere else "not everywhere"
    return ""


@contextlib.contextmanager
def own_plugin(folder: Path, value: int) -> Iterator[Path]:
    """A plugin of one's own that imports a module beside it; only that one differs. Neither is left behind."""
    folder.mkdir(exist_ok=True)
    file = folder / "own_plugin.py"
    if RANK // 2 == 0:
        (folder / "own_constant.py").write_text(f"VALUE = {value}\n")
        file.write_text(
            "import own_constant\nfrom hekaton.contributions import hookimpl\n\n\n"
            "@hookimpl\ndef hekaton_run_ended(step, error):\n    pass\n"
        )
    dist.barrier()
    with patch.object(sys, "path", [str(folder), *sys.path]):
        yield file
    del sys.modules["own_plugin"], sys.modules["own_constant"]


def counting(function: Callable[..., object], counted: dict[str, int]) -> Callable[..., object]:
    def call(*arguments: object, **named: object) -> object:
        counted[function.__name__] = counted.get(function.__name__, 0) + 1
        return function(*arguments, **named)

    return call


class Logged(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
