"""What a run is made of, put together in one place: for training, a dry run, a conversion in a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from hekaton.building import (
    BuiltModel,
    MetaModel,
    build_meta,
    build_objective,
    check_vocabulary,
    give_memory,
    initialize_parts,
    parallelize_model,
)
from hekaton.components import build_component, check_shared_out
from hekaton.config import Loaded
from hekaton.contributions import LRSchedule, Optimizer, Tokenizer
from hekaton.distributed import Process
from hekaton.draws import Draw
from hekaton.flops import counted_flops
from hekaton.forward_backward import ForwardBackward
from hekaton.init import rehearse
from hekaton.layer_choices import describe
from hekaton.mesh import Meshes, ParallelDims
from hekaton.objective import TrainingObjective
from hekaton.optim import LearningRate
from hekaton.parameters import group_names, initial_rates, parameter_groups, roles, trained_names

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.contributions import Component
    from hekaton.data import TextTokenizer
    from hekaton.plugins import Plugins

log = logging.getLogger("hekaton")

Memory = Literal["device", "fake"]


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """What a run is made of, on this process.

    :param parts: the parts of the model that this rank runs, in the order of their stages.
    :param flops: of :func:`hekaton.flops.counted_flops`.
    :param tokenizer: ``None`` on fake tensors, which need no data.
    :param fake_mode: the mode that the fake tensors belong to, ``None`` on the device.
    """

    config: JobConfig
    plugins: Plugins
    process: Process
    dims: ParallelDims
    meshes: Meshes
    meta: MetaModel
    built: BuiltModel
    parts: Sequence[nn.Module]
    objective: TrainingObjective
    flops: float | None
    tokenizer: TextTokenizer | None
    optimizers: Sequence[torch.optim.Optimizer]
    learning_rate: LearningRate
    forward_backward: ForwardBackward
    fake_mode: Any = None

    def build(self, kind: type[Component], name: str, *arguments: Any) -> Any:
        """Build one more component of the run."""
        return build_component(self.config, self.plugins, kind, name, *arguments)

    def rows(self, global_batch_size: int) -> range:
        """The rows of a global batch that this rank reads."""
        rows = global_batch_size // self.dims.dp
        first = self.meshes.batch["dp"].get_local_rank() * rows
        return range(first, first + rows)

    def draw(self, step: int, *, rows: Sequence[int], purpose: str = "training") -> Draw:
        """The random draws of one step, for the rows that this rank reads."""
        return Draw(
            seed=self.config.debug.seed or 0,
            step=step,
            rows=rows,
            device=self.process.device,
            purpose=purpose,
        )


def assemble(loaded: Loaded, process: Process, *, memory: Memory = "device") -> Assembled:
    """Build everything that a run is made of, except what reads data and writes files.

    Needs a process group of ``process.world_size``.

    :param memory: ``device`` gives the model memory on ``process.device`` and its initial weights; ``fake``
        gives it fake tensors, which have shapes and no values, under :attr:`Assembled.fake_mode`.
    :raises HekatonError: for what the configuration asks for and cannot have.
    """
    config, plugins = loaded.config, loaded.plugins
    dims = ParallelDims.of(config, world_size=process.world_size)
    meshes = dims.build_mesh(process.device.type)
    real = memory == "device"
    tokenizer = (
        build_component(config, plugins, Tokenizer, config.model.tokenizer, config.model.hf_assets_path)
        if real
        else None
    )
    meta = build_meta(config, plugins, dims)
    if tokenizer is not None:
        check_vocabulary(tokenizer, meta.config, config)
        _log_model(meta, config, process)
    objective = build_objective(meta, dims, config, plugins, device=process.device)
    seq_len = config.training.seq_len
    shapes = {one.name: tuple(one.shape) for one in objective.inputs(seq_len)}
    flops = counted_flops(meta, shapes, seq_len=seq_len)
    # DTensors are made on the meta device: in a fake mode, torch would have to compute with its indices.
    built = parallelize_model(meta, objective, meshes, dims, config, plugins)
    parts = list(built.parts.values())
    if not real:
        for part in parts:
            rehearse(part, meta.initializers, seed=config.debug.seed or 0)
    fake_mode = None if real else _fake_mode()
    with fake_mode or contextlib.nullcontext():
        give_memory(built, config, device=process.device)
        if real:
            initialize_parts(built, meta, seed=config.debug.seed or 0)
        optimizers = build_optimizers(parts, meta, config, plugins)
        terms = meta.spec.terms(meta.config) if meta.spec.terms is not None else {}
        forward_backward = ForwardBackward(
            built, objective, meshes, dims, config, device=process.device, terms=terms
        )
    steps = config.lr_scheduler.total_steps or config.training.steps
    schedule = build_component(
        config, plugins, LRSchedule, config.lr_scheduler.name, config.lr_scheduler, steps
    )
    return Assembled(
        config=config,
        plugins=plugins,
        process=process,
        dims=dims,
        meshes=meshes,
        meta=meta,
        built=built,
        parts=parts,
        objective=objective,
        flops=flops,
        tokenizer=tokenizer,
        optimizers=optimizers,
        learning_rate=LearningRate(optimizers, schedule, rates=initial_rates(config.optimizer)),
        forward_backward=forward_backward,
        fake_mode=fake_mode,
    )


def build_optimizers(
    parts: Sequence[nn.Module], meta: MetaModel, config: JobConfig, plugins: Plugins
) -> list[torch.optim.Optimizer]:
    """The optimizers of this rank's parts; a part in which nothing is trained has none.

    :raises ConfigError: for an entry of ``[[optimizer.groups]]`` that matches nothing.
    :raises PluginError: for an optimizer that does not share its parameters out.
    """
    vocab_size = getattr(meta.config, "vocab_size", None)
    model_roles = roles(meta.model, vocab_size=vocab_size if isinstance(vocab_size, int) else None)
    names = group_names(trained_names(meta.model), config.optimizer, what=meta.spec.name)
    optimizers: list[torch.optim.Optimizer] = []
    for part in parts:
        groups = parameter_groups(part, names, model_roles, config.optimizer)
        if groups:
            built = build_component(
                config, plugins, Optimizer, config.optimizer.name, config.optimizer, groups
            )
            mine = [built] if isinstance(built, torch.optim.Optimizer) else list(built)
            check_shared_out(mine, groups, name=config.optimizer.name)
            optimizers += mine
    return optimizers


def _log_model(meta: MetaModel, config: JobConfig, process: Process) -> None:
    for name, choices in meta.draft.choices.items():
        log.info("%s", "\n".join(describe(name, choices)))
    if config.model.print_after_conversion:
        log.info("the model after %d converter(s):\n%s", len(meta.converters), meta.model)
    log.info(
        "%s %s: %s parameters, %s on %d process(es)",
        config.model.name, config.model.flavor, f"{sum(p.numel() for p in meta.model.parameters()):,}",
        process.device.type, process.world_size,
    )  # fmt: skip


def _fake_mode() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)
