"""Two steps of a run on one process and under layouts of two: what they compute, resume and hold."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hekaton.distributed import this_process
from hekaton.rules import check
from hekaton.testing.conformance.judging import judged
from hekaton.testing.conformance.subject import loaded
from hekaton.testing.distributed import NamedLayout, run_processes, shared_meshes

ROWS, STEPS = 4, 2
Numbers = list[tuple[float, float]]
_ALL = [
    "--training.dtype", "float64", "--training.mixed_precision_param", "float64",
    "--training.mixed_precision_reduce", "float64", "--training.steps", str(STEPS), "--metrics.log_freq", "1",
    "--training.global_batch_size", str(ROWS), "--validation.enable", "false", "--compile.enable", "false",
    "--checkpoint.enable",
]  # fmt: skip
_SAVED = ["true", "--checkpoint.interval", "1", "--checkpoint.keep_latest_k", "0"]
_RESUMED = ["true", "--checkpoint.load_step", "1", "--checkpoint.load_only", "true"]


@dataclass(frozen=True)
class Measured:
    """What the runs gave; a layout of no name is that of one process.

    :param steps: layout -> loss and gradient norm of each step.
    :param resumed: where it was saved after the first step, and where resumed -> the same of the others;
        empty where no promise asks for it.
    :param shapes: layout -> the shapes of parameters and of optimizer state on the first rank.
    :param played: the same of the dry run; empty where no promise asks for it.
    :param judged: layout -> what an evaluation gave on each rank.
    """

    steps: Mapping[str, Numbers]
    resumed: Mapping[tuple[str, str], Numbers]
    shapes: Mapping[str, Mapping[str, Any]]
    played: Mapping[str, Mapping[str, Any]]
    judged: Mapping[str, list[dict[str, float]]]


def measure(
    arguments: Sequence[str],
    layouts: Sequence[str],
    *,
    timeout: float,
    evaluation: str = "",
    resume: bool = True,
    dry_run: bool = True,
) -> Measured:
    """Run what is asked for, in one launch of one process and one of two.

    :param arguments: of ``hekaton train``.
    :param layouts: of two processes, by their short names.
    :param timeout: in seconds, of each launch.
    :param evaluation: one that is asked at the end of each run.
    :param resume: whether runs are resumed under other layouts, too.
    :param dry_run: whether the layouts are played in a dry run, too.
    :raises AssertionError: with the layout and the error of the first run that failed.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes, names in ((1, [""]), (2, list(layouts))):
            run_processes(
                __file__, "record", processes=processes, timeout=timeout, arguments=list(arguments),
                layouts=names, played=list(layouts) if dry_run and processes == 1 else [], folder=folder,
                path=search_path(), evaluation=evaluation, resume=resume,
            )  # fmt: skip
            result = json.loads(Path(folder, f"{processes}.json").read_text(encoding="utf-8"))
            for what, values in result.items():
                found.setdefault(what, {}).update(values)
            if evaluation and not found["judged"][""]:
                break  # it is due at no step
    return Measured(
        steps={name: _pairs(numbers) for name, numbers in found["steps"].items()},
        resumed={tuple(json.loads(name)): _pairs(numbers) for name, numbers in found["resumed"].items()},
        shapes=found["shapes"],
        played=found["played"],
        judged=found["judged"],
    )


def _pairs(numbers: Any) -> Numbers:
    return [(loss, norm) for loss, norm in numbers]


@dataclass
class _Recorder:
    """A logger that keeps what steps computed."""

    numbers: Numbers = field(default_factory=list)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if "grad_norm" in metrics:
            self.numbers.append((metrics["loss"], metrics["grad_norm"]))

    def close(self) -> None:
        pass


def search_path() -> list[str]:
    """Where this process finds modules, for others that are to find them too."""
    return [str(Path(entry).absolute()) for entry in sys.path if entry]


def record(
    arguments: list[str],
    layouts: list[str],
    played: list[str],
    folder: str,
    path: list[str],
    evaluation: str,
    resume: bool,
) -> None:
    """On each of the processes: train, resume, and have rank 0 write down what came of it.

    :param played: the layouts to play in a dry run.
    """
    sys.path[:] = path
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    logging.getLogger("hekaton").setLevel(logging.ERROR)
    dist.init_process_group("gloo")
    first, processes = dist.get_rank() == 0, dist.get_world_size()
    found: dict[str, dict[str, Any]] = {"steps": {}, "resumed": {}, "shapes": {}, "played": {}, "judged": {}}
    targets = [*layouts[1:], layouts[0]] if resume else []
    with shared_meshes():
        for name in layouts:
            into = Path(folder, name or "one")
            checkpoints = _SAVED if resume else ["false"]
            found["steps"][name], found["shapes"][name], found["judged"][name] = _train(
                arguments, name, into, checkpoints, evaluation
            )
        for source, target in zip(layouts, targets, strict=False):
            saved = Path(folder, source or "one")
            found["resumed"][json.dumps([source, target])], *_ = _train(arguments, target, saved, _RESUMED)
    dist.destroy_process_group()
    found["played"] = {name: _play(arguments, name) for name in played}
    if first:
        Path(folder, f"{processes}.json").write_text(json.dumps(found), encoding="utf-8")


def _loaded(arguments: list[str], layout: str, folder: str, checkpoints: list[str]) -> Any:
    named = NamedLayout(layout)
    batch = ["--training.local_batch_size", str(ROWS // named.dp)]
    return loaded([*arguments, *_ALL, *checkpoints, *named.flags, *batch, "--job.dump_folder", folder])


def _train(
    arguments: list[str], layout: str, folder: Path, checkpoints: list[str], evaluation: str = ""
) -> tuple[Numbers, dict[str, Any], list[dict[str, float]]]:
    from hekaton.trainer import Trainer

    print(f"-- {layout or 'one process'}", flush=True)  # read when a process ends without an exception
    try:
        process = this_process()
        run = _loaded(arguments, layout, str(folder), checkpoints)
        check(run, world_size=process.world_size, device_type="cpu")
        recorder = _Recorder()
        trainer = Trainer(run, process, loggers=[recorder])
        trainer.run()
        numbers = judged(trainer, evaluation) if evaluation else []
    except Exception as e:
        raise AssertionError(f"under {layout or 'one process'}: {e}") from e
    return recorder.numbers, _shapes(trainer.model_parts, trainer.optimizers), numbers


def _play(arguments: list[str], layout: str) -> dict[str, Any]:
    """The shapes of the first rank in the dry run."""
    from hekaton.dry_run.fake import fake_process_group, play, rank_of

    run = _loaded(arguments, layout, "nowhere", ["false"])
    process = rank_of(NamedLayout(layout).processes, 0, what="rank")
    with fake_process_group(process):
        played = play(run, process)
        shapes = _shapes(played.built.parts.values(), ())
    return {**shapes, "optimizer state": played.held["optimizer state"]}


def _shapes(parts: Any, optimizers: Any) -> dict[str, Any]:
    """Name of each parameter -> the shape of this rank's part; and the bytes of the optimizers' state."""
    shapes: dict[str, Any] = {
        name: list(_local(parameter).shape) for part in parts for name, parameter in part.named_parameters()
    }
    shapes["optimizer state"] = sum(
        _local(value).nbytes
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    return shapes


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part."""
    local: Any = tensor.detach()
    return local.to_local() if isinstance(tensor, DTensor) else local  # type: ignore[no-any-return]
