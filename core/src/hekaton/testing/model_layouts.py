"""Is a model the same under every layout that its plan claims? Each on two processes, against one process."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hekaton.config import JobConfig
from hekaton.contributions import ContextParallel, Contribution, ParallelStyle
from hekaton.errors import ConfigErrors, HekatonError, UnknownName
from hekaton.forward_backward import TOTAL
from hekaton.metrics import with_own
from hekaton.overrides import override
from hekaton.parallel.contract import described
from hekaton.parallel.plan import ParallelPlan
from hekaton.plugins import Plugins, kind_name
from hekaton.plugins.packages import install_hint
from hekaton.spec import TrainSpec
from hekaton.testing.before_step import differences, state_after, state_on_one_process
from hekaton.testing.checked_steps import checked_steps, loaded_for
from hekaton.testing.distributed import NamedLayout
from hekaton.testing.initial import without_zeros
from hekaton.testing.launcher import run_processes
from hekaton.testing.plain_run import PlainRun, plain_run
from hekaton.testing.spec_places import imported, place_of

LOSS_WITHIN, GRADIENTS_WITHIN = 1e-4, 1e-3
"""Relative differences that rounding in float32 explains; what is wrong differs by far more."""
SECONDS_A_LAYOUT = 100.0
PLAIN = "shard2"
"""The layout that no model may refuse."""


def with_overrides(spec: TrainSpec, flavor: str, overrides: Mapping[str, Any] | None) -> TrainSpec:
    """The specification with fields of one flavor replaced, as ``model.overrides`` does it.

    :raises ConfigErrors: for fields that the flavor does not have, and values that it does not take.
    """
    if not overrides:
        return spec
    flavors = {**spec.flavors, flavor: override(spec.flavor(flavor), overrides, spec.name)}
    return dataclasses.replace(spec, flavors=flavors)


def _without_zeros(spec: TrainSpec) -> TrainSpec:
    return dataclasses.replace(spec, init=lambda config: without_zeros(spec.init(config)))


def check_claimed_layouts(
    spec: TrainSpec,
    flavor: str,
    *,
    load: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    tolerance: float | None = None,
) -> tuple[str, ...]:
    """Run one step under every layout of two processes that the plan claims, and compare it with one process;
    and where the model has a ``before_step`` the state that this leaves.

    A parameter that starts with 0 is given other values: behind it every gradient would be 0 on every layout.

    :param tolerance: relative difference of the loss and of gradients; by default what float32 explains.
    :returns: the layouts that ran; one that is refused by name, such as a pipeline that would cut a tied
        parameter, is left out.
    :raises AssertionError: naming the layout, and what differs or was raised.
    """
    layouts = claimed(spec.plan(with_overrides(spec, flavor, overrides).flavors[flavor]))
    with tempfile.TemporaryDirectory() as folder:
        if spec.before_step is not None:
            _launch(spec, flavor, [""], Path(folder), load, overrides, tolerance)
        _launch(spec, flavor, layouts, Path(folder), load, overrides, tolerance)
        return tuple(layout for layout in layouts if not _refused(Path(folder), layout).exists())


def _refused(folder: Path, layout: str) -> Path:
    """The file that says so."""
    return folder / f"{layout}.refused"


def check_before_step(spec: TrainSpec, flavor: str, *, load: Sequence[str] = ()) -> None:
    """Check that what a model counts in a step does not depend on how the step is cut.

    Two steps are taken without an optimizer, each followed by ``before_step``. The buffers, parameters and
    gradients that it leaves are the same when the rows go through in two microbatches, when blocks are
    recomputed in backward, and under every layout of two processes that the plan claims. What
    other random seeds change is not compared (modules of dropout pass everything on meanwhile). Part of
    ``check_model``.

    :param spec: it has a name in a module, from which other processes import it.
    :param load: plugins that are not installed, as ``--plugins.load`` takes them.
    :raises AssertionError: naming the case or layout, and what differs.
    """
    assert spec.before_step is not None, f"{spec.name} has no before_step"
    check_claimed_layouts(spec, flavor, load=load)


def _launch(
    spec: TrainSpec,
    flavor: str,
    layouts: Sequence[str],
    folder: Path,
    load: Sequence[str],
    overrides: Mapping[str, Any] | None,
    tolerance: float | None,
) -> None:
    """Run layouts of one number of processes, which serve them all."""
    module, attribute = place_of(spec)
    try:
        run_processes(
            __file__,
            "run_layouts",
            processes=NamedLayout(layouts[0]).processes,
            timeout=SECONDS_A_LAYOUT * len(layouts),
            layouts=list(layouts),
            module=module,
            source=getattr(sys.modules[module], "__file__", None),
            attribute=attribute,
            flavor=flavor,
            path=[str(Path(entry).absolute()) for entry in sys.path if entry],
            folder=str(folder),
            plugins=list(load),
            overrides=dict(overrides or {}),
            tolerance=tolerance,
        )
    except AssertionError as e:
        found = sorted(folder.glob("problem-*"), key=lambda file: file.stat().st_mtime_ns)
        if not found:
            raise
        raise AssertionError(f"{spec.name} {flavor} {found[0].read_text(encoding='utf-8')}") from e


def claimed(plan: ParallelPlan) -> list[str]:
    """The layouts of two processes that a plan says the model can have, by their short names; without those
    that need a distribution of this repository that is not installed."""
    plugins = Plugins.discover()
    layouts = [PLAIN]
    if plan.tensor and _is_installed(plugins, ParallelStyle, plan.tensor.values()):
        layouts.append("tp2")
    if plan.context and _is_installed(plugins, ContextParallel, [JobConfig().context_parallel_strategy()]):
        layouts.append("cp2")
    if plan.stages is not None:
        layouts.append("pp2")
    return layouts


def _is_installed(plugins: Plugins, kind: type[Contribution], names: Iterable[str]) -> bool:
    known = plugins.all(kind)
    missing = [name for name in names if name not in known and install_hint(kind_name(kind), name)]
    return bool(known) and not missing


def run_layouts(
    layouts: Sequence[str],
    module: str,
    source: str | None,
    attribute: str,
    flavor: str,
    path: list[str],
    folder: str,
    plugins: list[str],
    overrides: dict[str, Any],
    tolerance: float | None,
) -> None:
    """Run by :func:`check_claimed_layouts` on each process, up to the first layout with a problem; the layout
    without a name is that of one process."""
    torch.set_num_threads(1)
    # torch's advice on a layout (FSDP: "returned a view tensor") is none of what is checked.
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    sys.path[:] = path
    problem = Path(folder, f"problem-{os.environ['RANK']}")
    spec = _without_zeros(with_overrides(getattr(imported(module, source), attribute), flavor, overrides))
    alone = functools.cache(lambda: plain_run(spec, flavor, load=plugins))
    for layout in layouts:
        print(f"-- {layout or 'one process'}", flush=True)  # read when a process ends without an exception
        where = f"under {layout}" if layout else "on one process"
        try:
            wrong = _run(spec, flavor, layout, Path(folder), plugins, alone=alone, tolerance=tolerance)
        except HekatonError as e:
            problem.write_text(f"{where}: {e}", encoding="utf-8")
            raise
        except Exception as e:
            problem.write_text(f"{where}: {described(e)}", encoding="utf-8")
            raise
        if wrong:
            text = "\n".join(wrong)
            problem.write_text(f"{where}: {text}", encoding="utf-8")
            raise AssertionError(wrong)
    if dist.is_initialized():
        dist.destroy_process_group()


def _run(
    spec: TrainSpec,
    flavor: str,
    layout: str,
    folder: Path,
    plugins: Sequence[str],
    *,
    alone: Callable[[], PlainRun],
    tolerance: float | None,
) -> list[str]:
    """What differs from one process, a line each."""
    reference = folder / "reference.pt"
    if not layout:
        return state_on_one_process(spec, flavor, reference, plugins=plugins)
    try:
        loaded = loaded_for(spec, flavor, layout, plugins=plugins)
    except HekatonError as e:
        problems = e.problems if isinstance(e, ConfigErrors) else [e]
        if layout == PLAIN or any(isinstance(problem, UnknownName) for problem in problems):
            raise
        _refused(folder, layout).touch()
        return []
    expected = alone()
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    steps = checked_steps(loaded, expected, world_size=dist.get_world_size())
    for part in steps.parts:
        part.eval()  # without dropout, whose draws are a rank's own
    loss = steps.accumulate()
    wrong = []
    if not abs(loss - expected.loss) <= (tolerance or LOSS_WITHIN) * abs(expected.loss):
        wrong.append(f"the {TOTAL} is {loss:.6g}, and {expected.loss:.6g} in one process")
    for part in steps.parts:
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                wrong += _gradient_differs(
                    name, parameter.grad, expected.gradients[name], tolerance or GRADIENTS_WITHIN
                )
    if spec.before_step is not None and not wrong:
        wrong += differences(state_after(spec, steps), torch.load(reference))
    if spec.report is not None:
        with_own({}, spec.report(steps.parts, steps.meshes))
    return wrong


def _gradient_differs(name: str, grad: Any, expected: torch.Tensor, within: float) -> list[str]:
    if grad is None:
        return [f"'{name}' has no gradient"]
    whole = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    difference, size = (whole - expected).norm().item(), expected.norm().item()
    if difference <= within * size:
        return []
    return [f"the gradient of '{name}' differs from that of one process by {difference / (size or 1):.2g}"]
