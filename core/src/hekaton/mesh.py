"""ParallelDims: the degrees of parallelism, and the device mesh that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

if TYPE_CHECKING:
    from hekaton.config import JobConfig


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """The degree of each kind of parallelism; their product is the number of processes.

    :param pp: pipeline stages.
    :param dp_replicate: copies of the sharded model (HSDP; DDP where ``dp_shard`` is 1).
    :param dp_shard: ways in which parameters are sharded (FSDP).
    :param cp: parts of the sequence (context parallel).
    :param tp: ways in which layers are cut (tensor parallel).
    :param ep: ways in which experts are distributed, over the ranks of ``dp_shard``, ``cp`` and ``tp``: it is
        no factor of the number of processes, and neither is ``etp``.
    :param etp: ways in which each expert is cut.
    """

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1
    etp: int = 1

    @classmethod
    def of(cls, config: JobConfig, *, world_size: int) -> ParallelDims:
        """The degrees of a configuration that :mod:`hekaton.rules` accepts for so many processes."""
        degrees = config.parallelism
        return cls(
            pp=degrees.pipeline_parallel_degree,
            dp_replicate=degrees.data_parallel_replicate_degree,
            dp_shard=degrees.shard_degree(world_size),
            cp=degrees.context_parallel_degree,
            tp=degrees.tensor_parallel_degree,
            ep=degrees.expert_parallel_degree,
            etp=degrees.expert_tensor_parallel_degree,
        )

    @property
    def dp(self) -> int:
        """Ranks that read different rows of the batch."""
        return self.dp_replicate * self.dp_shard

    @property
    def fsdp(self) -> int:
        """Ways in which each parameter is sharded: ranks of context parallel shard parameters as well."""
        return self.dp_shard * self.cp

    @property
    def axes(self) -> dict[str, int]:
        """The degrees whose product is the number of processes, by name."""
        return {axis: degree for axis, degree in vars(self).items() if axis not in ("ep", "etp")}

    @property
    def efsdp(self) -> int:
        """Ways in which the tensors of experts are sharded: what ``ep`` and ``etp`` leave of the ranks."""
        return self.fsdp * self.tp // (self.ep * self.etp)

    @property
    def world_size(self) -> int:
        return self.pp * self.dp * self.cp * self.tp

    def build_mesh(self, device_type: str) -> Meshes:
        """The meshes over all processes; needs a process group of :attr:`world_size`."""
        world = init_device_mesh(device_type, (self.world_size,), mesh_dim_names=("world",))
        dense = world._unflatten(
            0,
            (self.pp, self.dp_replicate, self.fsdp, self.tp),
            ("pp", "dp_replicate", "fsdp", "tp"),
        )
        batch = world._unflatten(0, (self.pp, self.dp, self.cp, self.tp), ("pp", "dp", "cp", "tp"))
        return Meshes(
            dims=self,
            world=world,
            dense=dense,
            batch=batch,
            loss=batch["dp", "cp"]._flatten("loss"),
            report=batch["pp", "dp", "cp"]._flatten("report"),
            flattened=(dense["fsdp", "tp"]._flatten("fsdp_tp"),) if self.tp > 1 else (),
        )


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """The same processes, seen as what each part of a run needs. Every axis is there, whatever its size;
    neighbours on the last one sit on the fastest links.

    :param world: ``(world,)``: all of them.
    :param dense: ``(pp, dp_replicate, fsdp, tp)``: how parameters are placed; context-parallel ranks shard
        parameters as data-parallel ones do, ``fsdp`` being both.
    :param batch: ``(pp, dp, cp, tp)``: how rows (``dp``) and sequences (``cp``) are distributed.
    :param loss: ``(loss,)``: the ranks that a step's targets are summed over, ``dp`` and ``cp`` together.
    :param report: ``(report,)``: those that a step's loss is summed over; of a pipeline's ranks only the last
        has any.
    :param flattened: axes of ``dense`` taken together, for DTensor to sum over in one go.
    """

    dims: ParallelDims
    world: DeviceMesh
    dense: DeviceMesh
    batch: DeviceMesh
    loss: DeviceMesh
    report: DeviceMesh
    flattened: Sequence[DeviceMesh] = ()

    @cached_property
    def experts(self) -> DeviceMesh:
        """``(pp, dp_replicate, efsdp, ep, etp)``: how the tensors of experts are placed. Made when first
        asked for, which all processes must do together: a model without experts needs none of its groups."""
        dims = self.dims
        axes = ("pp", "dp_replicate", "efsdp", "ep", "etp")
        sizes = (dims.pp, dims.dp_replicate, dims.efsdp, dims.ep, dims.etp)
        mesh = self.world._unflatten(0, sizes, axes)
        mesh["efsdp", "ep", "etp"]._flatten("efsdp_ep_etp")  # for DTensor to sum over in one go
        return mesh
