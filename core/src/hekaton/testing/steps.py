"""Run by tests on one or several processes: a few steps of one run after another, and what each computed."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from hekaton.config import load
from hekaton.config.flags import split_files
from hekaton.distributed import all_sum, this_process
from hekaton.rules import check
from hekaton.testing.distributed import run_processes, shared_meshes
from hekaton.updating import tell_converters


def train_steps(
    runs: Mapping[str, Sequence[str]], *, processes: int, steps: int, folder: str | Path, timeout: float
) -> dict[str, list[tuple[float, float]]]:
    """The loss and the gradient norm of each of the first steps, of every run; one launch serves them all.

    :param runs: name -> the arguments of ``hekaton train``.
    :param folder: where the runs may write.
    :raises AssertionError: with the name and the error of the first run that failed.
    """
    asked, result = Path(folder, f"runs-on-{processes}.json"), Path(folder, f"steps-on-{processes}.json")
    asked.write_text(
        json.dumps({name: list(arguments) for name, arguments in runs.items()}), encoding="utf-8"
    )
    run_processes(
        __file__, "record", processes=processes, timeout=timeout, steps=steps, folder=str(folder),
        asked=str(asked), result=str(result),
    )  # fmt: skip
    return {
        name: [(loss, norm) for loss, norm in numbers]
        for name, numbers in json.loads(result.read_text(encoding="utf-8")).items()
    }


def record(asked: str, steps: int, folder: str, result: str) -> None:
    """On each of the processes: train, and have rank 0 write down the numbers."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    logging.getLogger("hekaton").setLevel(logging.ERROR)
    dist.init_process_group("gloo")
    numbers = {}
    with shared_meshes():
        for name, arguments in json.loads(Path(asked).read_text(encoding="utf-8")).items():
            print(f"-- {name}", flush=True)  # read when a process ends without an exception
            try:
                numbers[name] = _train([*arguments, "--job.dump_folder", folder], steps)
            except Exception as e:
                raise AssertionError(f"{name}: hekaton train {' '.join(arguments)}") from e
    if dist.get_rank() == 0:
        Path(result).write_text(json.dumps(numbers), encoding="utf-8")
    dist.destroy_process_group()


def _train(arguments: list[str], steps: int) -> list[tuple[float, float]]:
    from hekaton.trainer import Trainer

    process = this_process()
    files, flags = split_files(arguments)
    loaded = load(files, flags)
    check(loaded, world_size=process.world_size, device_type="cpu")
    torch.compiler.reset()  # what was compiled before counts towards the limit of recompilations
    trainer = Trainer(loaded, process)
    tell_converters(trainer.assembled)
    numbers = []
    for trainer.step in range(1, steps + 1):
        losses, grad_norm = trainer.train_step()
        loss = all_sum(losses["loss"].clone(), trainer.meshes.report.get_group())
        numbers.append((loss.item(), grad_norm.item()))
    trainer.loader.close()
    return numbers
