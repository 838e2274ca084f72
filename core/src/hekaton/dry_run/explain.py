"""A layout in words and numbers: where each parameter lies, who runs what, and what is sent when."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch.distributed.device_mesh import DeviceMesh

from hekaton.dry_run.fake import Played, fake_process_group, play
from hekaton.parallel.apply import parallelize
from hekaton.parallel.experts import expert_entries, has_own_mesh
from hekaton.parallel.tensor import tensor_entries
from hekaton.patterns import with_owners

if TYPE_CHECKING:
    from hekaton.config import JobConfig, Loaded
    from hekaton.distributed import Process

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ParameterRow:
    """Parameters that differ in their layer's number only.

    :param name: their name, with ``*`` for the number.
    :param count: how many there are.
    :param style: the plan's style for their module, empty without tensor parallel.
    :param placement: mesh axis -> how it is placed over the axis's ranks; axes of one rank are left out.
    :param local: the shapes of its parts, each with the number of ranks (of those axes) that have it.
    """

    name: str
    count: int
    style: str
    shape: Shape
    dtype: str
    placement: Mapping[str, str]
    local: Sequence[tuple[Shape, int]]


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A pipeline stage, the pipeline rank that runs it, and its modules."""

    stage: int
    pp_rank: int
    modules: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What ``hekaton config show --parallel`` prints; sizes in bytes.

    :param rank: the rank that was played: it holds ``held``, and sends ``messages`` in one step.
    :param degrees: the mesh's axes and their sizes, neighbouring ranks on the last.
    :param experts: the axes of the mesh of experts over the same ranks, empty where they lie as other
        parameters do.
    :param fsdp: ranks that each parameter is sharded over: ``dp_shard`` and ``cp`` together.
    :param schedule: the pipeline's, empty without one.
    """

    processes: int
    rank: int
    degrees: Mapping[str, int]
    experts: Mapping[str, int]
    fsdp: int
    schedule: str
    stages: Sequence[StageRow]
    parameters: Sequence[ParameterRow]
    held: Mapping[str, int]
    peak: int
    messages: Sequence[Mapping[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def explain(loaded: Loaded, process: Process) -> Explanation:
    """Build the run's model and take one step of it on fake tensors, as rank ``process.rank``."""
    config = loaded.config
    with fake_process_group(process):
        played = play(loaded, process)
        return Explanation(
            processes=process.world_size,
            rank=process.rank,
            degrees=played.dims.axes,
            experts=_expert_axes(played),
            fsdp=played.dims.fsdp,
            schedule=_schedule(config) if played.dims.pp > 1 else "",
            stages=_stages(played),
            parameters=list(_parameters(played, config)),
            held=played.held,
            peak=played.peak,
            messages=[
                {"times": times, **vars(message)}
                for message, times in played.messages.items()
                if message.ranks > 1
            ],
        )


def _expert_axes(played: Played) -> dict[str, int]:
    dims = played.dims
    if not played.meta.plan.experts or not has_own_mesh(dims):
        return {}
    return {"efsdp": dims.efsdp, "ep": dims.ep, "etp": dims.etp}


def _schedule(config: JobConfig) -> str:
    settings = config.parallelism
    return settings.pipeline_parallel_schedule_csv or settings.pipeline_parallel_schedule


def _stages(played: Played) -> list[StageRow]:
    stages = played.built.layout.stages
    if stages is None:
        return []
    return [
        StageRow(stage=stage, pp_rank=rank, modules=modules)
        for stage, (rank, modules) in enumerate(zip(stages.ranks, stages.modules, strict=True))
    ]


def _parameters(played: Played, config: JobConfig) -> Iterator[ParameterRow]:
    """A row for all parameters that lie alike, in the order of the model."""
    layout, meta, dims = played.built.layout, played.meta, played.dims
    if layout.stages is None:
        whole = played.built.parts[0]
    else:  # stages are cut from copies of the model, and where a parameter lies does not depend on its stage
        whole = parallelize(meta.model, replace(layout, stages=None), played.meshes, dims, config)[0]
    entries = {}
    if dims.tp > 1:
        entries = tensor_entries(meta.model, meta.plan, config.parallelism.plan, what=meta.spec.name)
    if dims.ep * dims.etp > 1:
        styles = expert_entries(meta.model, meta.plan.experts, what=meta.spec.name)
        entries |= {f"{name}.experts": style for name, style in styles.items()}
    alike: dict[tuple[Any, ...], int] = {}
    for name, parameter in whole.named_parameters():
        module = name.rpartition(".")[0]
        style = next((entries[owner] for owner in with_owners(module) if owner in entries), "")
        mesh: DeviceMesh | None = getattr(parameter, "device_mesh", None)
        placements = getattr(parameter, "placements", ())
        key = (
            re.sub(r"\.\d+(?=\.)", ".*", name),
            style,
            tuple(parameter.shape),
            str(parameter.dtype).removeprefix("torch."),
            tuple(mesh.mesh_dim_names or ()) if mesh is not None else (),
            tuple(mesh.shape) if mesh is not None else (),
            tuple(placements),
        )
        alike[key] = alike.get(key, 0) + 1
    for (name, style, shape, dtype, axes, sizes, placements), count in alike.items():
        yield ParameterRow(
            name=name,
            count=count,
            style=style,
            shape=shape,
            dtype=dtype,
            placement={
                axis: _placement(placement, axes)
                for axis, size, placement in zip(axes, sizes, placements, strict=True)
                if size > 1
            },
            local=_local_shapes(shape, sizes, placements),
        )


def _placement(placement: Any, axes: Sequence[str]) -> str:
    from torch.distributed.tensor import Replicate

    if isinstance(placement, Replicate):
        return "whole"
    # Strided: FSDP shards what tensor or expert parallel has cut before, along the same dim.
    part = "the expert's part" if "ep" in axes else "tp's part"
    return f"dim {placement.dim}" + (f" of {part}" if hasattr(placement, "split_factor") else "")


def _local_shapes(shape: Shape, sizes: Shape, placements: Sequence[Any]) -> list[tuple[Shape, int]]:
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

    shapes = Counter(
        _compute_local_shape_and_global_offset(shape, sizes, list(coordinate), placements, skip_offset=True)[
            0
        ]
        for coordinate in itertools.product(*map(range, sizes))
    )
    return shapes.most_common()
