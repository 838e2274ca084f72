"""One optimizer step of any run in one process, on fake tensors: errors show here, before on a cluster.

This process plays one rank of a process group whose communication does nothing; tensors have shapes, types
and placements, and no memory.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from hekaton.assembly import Assembled, assemble
from hekaton.building import BuiltModel, MetaModel
from hekaton.config.base import MAX_PROCESSES
from hekaton.distributed import Process
from hekaton.dry_run.observe import Message, Observer
from hekaton.environment import number
from hekaton.errors import ConfigError
from hekaton.mesh import Meshes, ParallelDims
from hekaton.objective import Batch
from hekaton.optim import clip_grad_norm
from hekaton.parallel.contract import needed_inputs
from hekaton.parallel.pipeline import Pipeline
from hekaton.spec import SteppingConverter

if TYPE_CHECKING:
    from hekaton.config import JobConfig, Loaded

log = logging.getLogger("hekaton")


def played_process(config: JobConfig) -> Process:
    """The rank to play: ``FAKE_RANK`` (else ``RANK``, else 0) of ``NGPU`` × ``NNODES`` processes; without
    ``NGPU``, of as many as the degrees multiply to.

    :raises ConfigError: for a variable that is no number, or a rank beyond the world.
    """
    world_size = (
        number("NGPU", default=1, at_least=1) * number("NNODES", default=1, at_least=1)
        if "NGPU" in os.environ
        else smallest_world(config)
    )
    name = "FAKE_RANK" if "FAKE_RANK" in os.environ else "RANK"
    return rank_of(world_size, number(name, default=0), what=name)


def smallest_world(config: JobConfig) -> int:
    """What the degrees multiply to, with 1 for a ``data_parallel_shard_degree`` of -1."""
    degrees = config.parallelism
    shard = degrees.data_parallel_shard_degree
    if shard == -1:  # as many as experts need to be distributed
        experts = degrees.expert_parallel_degree * degrees.expert_tensor_parallel_degree
        ranks = degrees.context_parallel_degree * degrees.tensor_parallel_degree
        shard = experts // math.gcd(experts, ranks)
    return degrees.other_degrees * shard


def rank_of(world_size: int, rank: int, *, what: str) -> Process:
    """:raises ConfigError: for a rank beyond the world, naming ``what`` gave it."""
    if world_size > MAX_PROCESSES:
        raise ConfigError(f"{world_size:,} processes are more than {MAX_PROCESSES:,}")
    if rank >= world_size:
        raise ConfigError(f"{what} = {rank}: there are ranks 0 to {world_size - 1}")
    return Process(rank, world_size, torch.device("cpu"))


@contextlib.contextmanager
def fake_process_group(process: Process) -> Iterator[None]:
    """A process group of ``process.world_size`` in which this process is alone, and nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=process.rank, world_size=process.world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class Played:
    """What one rank met in one step.

    :param held: what -> bytes of this rank's own: parameters, gradients, optimizer state.
    :param peak: bytes in use at most while forward and backward ran, with all that is held and activations.
        An estimate: operators of another device keep other things, and its allocator leaves gaps.
    :param messages: how often this rank sent what.
    """

    dims: ParallelDims
    meshes: Meshes
    meta: MetaModel
    built: BuiltModel
    held: Mapping[str, int]
    peak: int
    messages: Mapping[Message, int]


def run_fake(loaded: Loaded, process: Process) -> None:
    """Build the run's model as rank ``process.rank`` does, take one step, and say what a rank holds."""
    began = time.perf_counter()
    _notice_left_out(loaded.config)
    with fake_process_group(process):
        played = play(loaded, process)
    log.info(
        "one step ran as rank %d of %d (%s) in %.1f s",
        process.rank,
        process.world_size,
        ", ".join(f"{axis} {degree}" for axis, degree in played.dims.axes.items()),
        time.perf_counter() - began,
    )
    for name, size in played.held.items():
        log.info("this rank's %-16s %9.3f GiB", name, size / 2**30)
    log.info("%-28s %9.3f GiB, by estimate", "at most, with activations", played.peak / 2**30)


def play(loaded: Loaded, process: Process) -> Played:
    """Take one step, not compiled, as rank ``process.rank`` of a fake process group, which must exist."""
    config = loaded.config
    if config.compile.enable:  # the compiler would see the fake tensors, and refuses them
        eager = config.compile.model_copy(update={"enable": False})
        config = config.model_copy(update={"compile": eager})
    assembled = assemble(replace(loaded, config=config), process, memory="fake")
    meshes = assembled.meshes
    parameters = [parameter for part in assembled.parts for parameter in part.parameters()]
    with assembled.fake_mode as mode:
        if assembled.forward_backward.pipeline is not None:
            _skip_vote(assembled.forward_backward.pipeline)
        with Observer(assembled.parts, assembled.meta.plan, meshes, mode) as observer:
            assembled.forward_backward.accumulate(*_prepared(assembled))
            peak = observer.peak
            observer.phase = "optimizer"
            if assembled.meta.spec.before_step is not None:
                with torch.no_grad():
                    assembled.meta.spec.before_step(assembled.parts, meshes)
            clip_grad_norm(parameters, config.training.max_norm, pipeline=meshes.dense["pp"].get_group())
            assembled.learning_rate.apply()
            for optimizer in assembled.optimizers:
                optimizer.step()
            for converter in assembled.meta.converters:
                if isinstance(converter, SteppingConverter):
                    converter.after_step(assembled.parts)
    states = [
        value
        for optimizer in assembled.optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    held = {
        "parameters": _bytes(parameters),
        "gradients": _bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        "optimizer state": _bytes(states),
    }
    return Played(
        dims=assembled.dims,
        meshes=meshes,
        meta=assembled.meta,
        built=assembled.built,
        held=held,
        peak=held["parameters"] + held["optimizer state"] + peak,
        messages=observer.messages,
    )


def _skip_vote(pipeline: Pipeline) -> None:
    """Since torch 2.13, stages first vote on whether all know their shapes: by values, which nobody sends."""
    if not hasattr(pipeline.schedule, "_warmup_p2p"):
        return
    from torch.distributed.pipelining._utils import InferenceMode

    def warm_up(stages: Iterable[Any], has_backward: bool, p2p_done: bool) -> None:
        for stage in stages:
            stage._inference_mode = InferenceMode.STATIC

    pipeline.schedule._warmup_p2p = warm_up


def _prepared(assembled: Assembled) -> tuple[Batch, Batch]:
    """Inputs and targets as the objective declares them, as far as possible without those whose values decide
    what is computed: fake tensors have none."""
    config, objective, device = assembled.config, assembled.objective, assembled.process.device
    rows = len(assembled.rows(config.global_batch_size(assembled.process.world_size)))
    inputs, targets = objective.inputs(config.training.seq_len), objective.targets(config.training.seq_len)
    return (
        {one.name: one.empty(rows, device=device) for one in needed_inputs(assembled.parts[0], inputs)},
        {one.name: one.empty(rows, device=device) for one in targets if not one.optional},
    )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of this rank's parts."""
    from torch.distributed.tensor import DTensor

    locals_ = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(local.numel() * local.element_size() for local in locals_)


def _notice_left_out(config: JobConfig) -> None:
    enabled = {
        "compile": config.compile.enable,
        "checkpoints": config.checkpoint.enable,
        "loggers": bool(config.logger_names()),
        "validation": config.validation.enable,
        "profiling": config.profiling.enable_profiling or config.profiling.enable_memory_snapshot,
        "print_config": config.job.print_config,
        "print_after_conversion": config.model.print_after_conversion,
        "gc_debug": config.training.gc_debug,
        "deterministic": config.debug.deterministic,
    }
    left_out = ["dataset", "tokenizer", *(name for name, on in enabled.items() if on)]
    log.info('notice: comm.mode = "fake_backend": one step on fake tensors, without %s', ", ".join(left_out))
