"""Is a model the same under every layout that its plan claims? Each on two processes, against one process."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hekaton.build import build_meta, build_objective, give_memory, initialize_parts, parallelize_model
from hekaton.config import load
from hekaton.contributions import ContextParallel, ParallelStyle
from hekaton.distributed import all_sum
from hekaton.errors import ConfigErrors, HekatonError, UnknownName
from hekaton.forward_backward import TOTAL, ForwardBackward
from hekaton.mesh import ParallelDims
from hekaton.parallel.contract import described
from hekaton.parallel.plan import ParallelPlan
from hekaton.plugins import Plugins
from hekaton.rules import check
from hekaton.spec import TrainSpec
from hekaton.testing import checked_model
from hekaton.testing.distributed import NamedLayout
from hekaton.testing.launcher import run_processes
from hekaton.testing.plain_run import CPU, ROWS, SEQ_LEN, plain_run

LOSS_WITHIN, GRADIENTS_WITHIN = 1e-4, 1e-3
"""Relative differences that rounding in float32 explains; what is wrong differs by far more."""


def check_claimed_layouts(spec: TrainSpec, flavor: str) -> tuple[str, ...]:
    """Run one step under every layout of two processes that the plan claims, and compare it with one process.

    :returns: the layouts that ran; one that is refused by name, such as a pipeline that would cut a tied
        parameter, is left out.
    :raises AssertionError: naming the layout, and what differs or was raised.
    """
    module, attribute = _place_of(spec)
    ran = []
    for layout in claimed(spec.plan(spec.flavors[flavor])):
        with tempfile.TemporaryDirectory() as folder:
            try:
                run_processes(
                    __file__,
                    "run_layout",
                    processes=2,
                    layout=layout,
                    module=module,
                    source=getattr(sys.modules[module], "__file__", None),
                    attribute=attribute,
                    flavor=flavor,
                    path=[str(Path(entry).absolute()) for entry in sys.path if entry],
                    folder=folder,
                )
            except AssertionError as e:
                found = sorted(Path(folder).glob("problem-*"), key=lambda file: file.stat().st_mtime_ns)
                if not found:
                    raise
                problem = found[0].read_text(encoding="utf-8")
                raise AssertionError(f"{spec.name} {flavor} under {layout}: {problem}") from e
            if not Path(folder, "refused").exists():
                ran.append(layout)
    return tuple(ran)


def claimed(plan: ParallelPlan) -> list[str]:
    """The layouts of two processes that a plan says the model can have, by their short names."""
    plugins = Plugins.discover()
    layouts = ["shard2"]
    if plan.tensor and plugins.all(ParallelStyle):
        layouts.append("tp2")
    if plan.context and plugins.all(ContextParallel):
        layouts.append("cp2")
    if plan.stages is not None:
        layouts.append("pp2")
    return layouts


def _place_of(spec: TrainSpec) -> tuple[str, str]:
    """The module that has the specification, and its name there."""
    for name, module in sorted(sys.modules.items(), key=lambda item: item[0].startswith("__")):
        for attribute, value in list(vars(module).items()):
            if value is spec:
                return name, attribute
    raise AssertionError(
        f"{spec.name}: layouts run in other processes, which cannot find this TrainSpec: give it a name in a "
        "module, or call check_model(..., layouts=False)"
    )


def run_layout(
    layout: str, module: str, source: str | None, attribute: str, flavor: str, path: list[str], folder: str
) -> None:
    """Run by :func:`check_claimed_layouts` on each process."""
    torch.set_num_threads(1)
    # torch's advice on a layout (FSDP: "returned a view tensor") is none of what is checked.
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    sys.path[:] = path
    spec: TrainSpec = getattr(_imported(module, source), attribute)
    checked_model.train_spec = dataclasses.replace(spec, configure=None, defaults={})
    problem = Path(folder, f"problem-{os.environ['RANK']}")
    try:
        wrong = _run(spec, flavor, layout, Path(folder))
    except HekatonError as e:
        problem.write_text(str(e), encoding="utf-8")
        raise
    except Exception as e:
        problem.write_text(described(e), encoding="utf-8")
        raise
    if wrong:
        problem.write_text("\n".join(wrong), encoding="utf-8")
        raise AssertionError(wrong)


def _imported(module: str, source: str | None) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        if source is None:
            raise
    spec = importlib.util.spec_from_file_location("model_to_check", source)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[loaded.__name__] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _run(spec: TrainSpec, flavor: str, layout: str, folder: Path) -> list[str]:
    """What differs from one process, a line each."""
    named = NamedLayout(layout)
    flags = [
        "--plugins.load", checked_model.__name__, "--model.name", checked_model.NAME,
        "--model.flavor", flavor, "--model.tokenizer", "byte", "--activation_checkpoint.mode", "none",
        "--training.seq_len", str(SEQ_LEN), "--training.local_batch_size", str(ROWS // named.dp),
        "--training.mixed_precision_param", "float32", *named.flags,
    ]  # fmt: skip
    loaded = load([], flags)
    try:
        check(loaded, world_size=named.processes, device_type="cpu", here=False)
    except HekatonError as e:
        problems = e.problems if isinstance(e, ConfigErrors) else [e]
        if any(isinstance(problem, UnknownName) for problem in problems):
            raise
        Path(folder, "refused").touch()
        return []
    expected = plain_run(spec, flavor)
    dist.init_process_group("gloo")
    config = loaded.config
    dims = ParallelDims.of(config, world_size=named.processes)
    meshes = dims.build_mesh("cpu")
    meta = build_meta(config, loaded.plugins, dims)
    objective = build_objective(meta, dims, config, loaded.plugins, device=CPU)
    built = parallelize_model(meta, objective, meshes, dims, config, loaded.plugins)
    give_memory(built, config, device=CPU)
    initialize_parts(built, meta, seed=0)
    for part in built.parts.values():
        part.eval()  # without dropout, whose draws are a rank's own
    terms = spec.terms(meta.config) if spec.terms is not None else {}
    forward_backward = ForwardBackward(built, objective, meshes, dims, config, device=CPU, terms=terms)
    mine = ROWS // dims.dp
    start = meshes.batch["dp"].get_local_rank() * mine
    inputs, targets = (
        {name: value[start : start + mine] for name, value in given.items()}
        for given in (expected.inputs, expected.targets)
    )
    total, _ = forward_backward.accumulate(inputs, targets)
    loss = all_sum(total.clone(), meshes.report.get_group()).item()
    wrong = []
    if not abs(loss - expected.loss) <= LOSS_WITHIN * abs(expected.loss):
        wrong.append(f"the {TOTAL} is {loss:.6g}, and {expected.loss:.6g} in one process")
    for part in built.parts.values():
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                wrong += _gradient_differs(name, parameter.grad, expected.gradients[name])
    dist.destroy_process_group()
    return wrong


def _gradient_differs(name: str, grad: Any, expected: torch.Tensor) -> list[str]:
    if grad is None:
        return [f"'{name}' has no gradient"]
    whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    difference, size = (whole - expected).norm().item(), expected.norm().item()
    if difference <= GRADIENTS_WITHIN * size:
        return []
    return [f"the gradient of '{name}' differs from that of one process by {difference / (size or 1):.2g}"]
