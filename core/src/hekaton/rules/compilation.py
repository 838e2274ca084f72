"""Rules of recomputation and overlap: what they need of the compiler, the device, the model and torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from hekaton.building import build_meta
from hekaton.errors import HekatonError, choices_hint
from hekaton.mesh import ParallelDims
from hekaton.parallel.schedules import SPLIT_BACKWARD
from hekaton.parallel.selective import operator, recomputed_linears
from hekaton.rules.run import Run

SHAPES = "per_op_sac_force_recompute_mm_shapes_by_fqns"


def _compiles_model(run: Run) -> bool:
    return run.config.compile.enable and "model" in run.config.compile.components


def operators_can_be_kept(run: Run) -> Iterator[HekatonError]:
    """Under recomputation by operator, torch has the operators and the model the layers that are named."""
    settings = run.config.activation_checkpoint
    if settings.mode != "selective" or settings.selective_ac_option != "op":
        return
    if settings.debug:
        yield run.violation(
            'activation_checkpoint.debug cannot record under selective_ac_option = "op"',
            "activation_checkpoint.debug",
            hint='find the block with mode = "full" first',
        )
    layout = run.config.parallelism
    schedule = layout.pipeline_parallel_schedule
    splits = layout.pipeline_parallel_degree > 1 and schedule in SPLIT_BACKWARD
    if splits and (not _compiles_model(run) or layout.context_parallel_degree > 1):
        yield run.violation(
            f"schedule '{schedule}' goes backward twice over each block, for inputs and for weights, "
            "and what recomputation by operator keeps is there once",
            "parallelism.pipeline_parallel_schedule",
            "activation_checkpoint.selective_ac_option",
            hint='choose activation_checkpoint.mode = "full", or another schedule',
        )
    for name in settings.save_ops:
        try:
            operator(name)
        except HekatonError as e:
            yield run.violation(e.message, "activation_checkpoint.save_ops", hint=e.hint)
    if run.is_set(f"activation_checkpoint.{SHAPES}"):
        yield from _layers_exist(run)


def _layers_exist(run: Run) -> Iterator[HekatonError]:
    settings = run.config.activation_checkpoint
    names = settings.per_op_sac_force_recompute_mm_shapes_by_fqns
    usual = type(settings)().per_op_sac_force_recompute_mm_shapes_by_fqns
    try:
        model = build_meta(run.config, run.plugins, ParallelDims()).model
    except HekatonError:
        return  # said by the rule that is about it, or by the run
    for name in names:
        try:
            found = recomputed_linears(model, [name])
        except HekatonError as e:
            yield run.violation(e.message, f"activation_checkpoint.{SHAPES}", hint=e.hint)
            continue
        if not found and name not in usual:
            yield run.violation(
                f"activation_checkpoint.{SHAPES}: {run.config.model.name} has no linear layer '{name}'",
                f"activation_checkpoint.{SHAPES}",
                hint="give the end of a module's name, such as attention.wq",
            )


def memory_budget_is_compiled(run: Run) -> Iterator[HekatonError]:
    """The compiler is what divides activations into kept and recomputed."""
    settings = run.config.activation_checkpoint
    if settings.mode != "memory_budget":
        return
    mode = "activation_checkpoint.mode"
    if not _compiles_model(run):
        yield run.violation(
            f'{mode} = "memory_budget" needs compilation of the model',
            mode,
            "compile.enable",
            "compile.components",
            hint='set compile.enable = true, with "model" in compile.components',
        )
    elif run.config.compile.backend == "eager":
        yield run.violation(
            f'{mode} = "memory_budget" has no effect with compile.backend = "eager", which keeps everything',
            mode,
            "compile.backend",
            hint="choose inductor or aot_eager",
        )
    if settings.visualize_memory_budget_pareto and find_spec("matplotlib") is None:
        yield run.violation(
            "activation_checkpoint.visualize_memory_budget_pareto needs matplotlib",
            "activation_checkpoint.visualize_memory_budget_pareto",
            hint="pip install matplotlib",
        )


def async_tensor_parallel_can_run(run: Run) -> Iterator[HekatonError]:
    """Asynchronous tensor parallel is a pass of inductor over collectives in CUDA's symmetric memory."""
    settings = run.config.parallelism
    if not settings.enable_async_tensor_parallel:
        return
    field = "parallelism.enable_async_tensor_parallel"
    needs = [
        (
            settings.tensor_parallel_degree > 1,
            "parallelism.tensor_parallel_degree above 1",
            "parallelism.tensor_parallel_degree",
        ),
        (
            settings.sequence_parallel,
            "parallelism.sequence_parallel = true",
            "parallelism.sequence_parallel",
        ),
        (_compiles_model(run), "compilation of the model (compile.enable)", "compile.enable"),
        (
            run.config.compile.backend == "inductor" or not _compiles_model(run),
            'compile.backend = "inductor"',
            "compile.backend",
        ),
        (run.device_type == "cuda", f"CUDA; this run is on {run.device_type}", ""),
    ]
    for met, what, other in needs:
        if not met:
            yield run.violation(f"{field} needs {what}", field, other)


def backend_exists(run: Run) -> Iterator[HekatonError | str]:
    """torch.compile has the backend; asking it costs a second or two."""
    settings = run.config.compile
    if not settings.enable:
        return
    if not settings.components:
        yield "compile.enable has no effect: compile.components is empty"
        return
    import torch.compiler

    if settings.backend not in torch.compiler.list_backends(exclude_tags=()):
        yield run.violation(
            f"unknown backend '{settings.backend}' (compile.backend)",
            "compile.backend",
            hint=choices_hint(settings.backend, torch.compiler.list_backends()),
        )
