"""Replicas that drift: what several ranks hold alike is compared bit by bit, and who differs is named.

Hardware that computes wrongly raises nothing. What it leaves is a parameter, a moment of the optimizer or a
buffer that is no longer what the other replicas have.
"""

from __future__ import annotations

import socket
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate

from hekaton.checkpoint.tensors.state import stored_tensors
from hekaton.errors import TrainingError
from hekaton.fault.digest import digests

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

WHOLE = "whole"
MOST_NAMED = 20
"""Tensors of which each rank tells the others when they differ."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A tensor of this rank that others may hold too.

    :param name: of the parameter, the buffer, or the moment of a parameter.
    :param groups: axis -> the ranks along it that have the same part of it.
    """

    name: str
    tensor: torch.Tensor
    groups: Mapping[str, dist.ProcessGroup]

    @property
    def local(self) -> torch.Tensor:
        return self.tensor.to_local() if isinstance(self.tensor, DTensor) else self.tensor

    @property
    def part(self) -> str:
        """Where what is here lies in the whole tensor: ranks with equal parts must have equal bits."""
        if not isinstance(self.tensor, DTensor):
            return WHOLE
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        shape, offset = compute_local_shape_and_global_offset(
            self.tensor.shape, self.tensor.device_mesh, self.tensor.placements
        )
        whole = tuple(shape) == tuple(self.tensor.shape)
        return WHOLE if whole else f"{tuple(shape)} at {tuple(offset)} of {tuple(self.tensor.shape)}"


class ReplicaCheck:
    """Compares what must be equal on several ranks.

    :param mesh: ``(pp, dp_replicate, fsdp, tp)`` over all processes. A tensor that is no DTensor is held
        alike on all ranks of its pipeline stage.
    """

    def __init__(
        self,
        parts: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        mesh: DeviceMesh,
        *,
        device: torch.device,
    ) -> None:
        self._parts = parts
        self._optimizers = optimizers
        self._device = device
        self._axes = {axis: mesh[axis].get_group() for axis in mesh.mesh_dim_names or () if axis != "pp"}

    def __call__(self, step: int) -> TrainingError | None:
        """Compare, after the optimizer step; every rank calls this.

        Where all are equal it costs one pass over the tensors, two small collectives along each axis that has
        replicas, and one over all ranks.

        :returns: the same on every rank, naming what differs, on which ranks of which hosts; ``None`` where
            nothing does.
        :raises TrainingError: where replicas hold tensors of different names.
        """
        held = [one for one in self._held() if one.groups]
        mine = digests([one.local for one in held], self._device)
        differ = self._differing(held, mine)
        found = torch.tensor(int(bool(differ)), device=self._device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return drifted(step, self._details(held, mine, differ)) if found.item() else None

    def _held(self) -> Iterable[Held]:
        tensors = stored_tensors(self._parts)
        names = {id(tensor): name for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            yield Held(name=name, tensor=tensor, groups=self._groups(tensor))
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    for key, value in sorted(optimizer.state.get(parameter, {}).items()):
                        if isinstance(value, torch.Tensor):
                            name = f"{key} of {names[id(parameter)]}"
                            yield Held(name=name, tensor=value, groups=self._groups(value))

    def _groups(self, tensor: torch.Tensor) -> dict[str, dist.ProcessGroup]:
        groups = self._axes
        if isinstance(tensor, DTensor):
            mesh = tensor.device_mesh
            own = mesh.mesh_dim_names or [f"axis {axis}" for axis in range(mesh.ndim)]
            # A mesh of somebody else's says nothing of the axes that it does not have.
            ours = set(own) <= {*self._axes, "pp"}
            groups = {name: group for name, group in self._axes.items() if ours and name not in own}
            groups |= {
                name: mesh.get_group(axis)
                for axis, name in enumerate(own)
                if isinstance(tensor.placements[axis], Replicate)
            }
        return {name: group for name, group in sorted(groups.items()) if group.size() > 1}

    def _differing(self, held: Sequence[Held], mine: torch.Tensor) -> set[str]:
        """The names of the tensors that some rank of this rank's groups holds otherwise."""
        by_group: dict[str, tuple[dist.ProcessGroup, list[int]]] = {}
        for index, one in enumerate(held):
            for group in one.groups.values():
                by_group.setdefault(group.group_name, (group, []))[1].append(index)
        # Ranks of one axis have groups of other names: all go through them in the order of the axes.
        axis_of = {group.group_name: axis for one in held for axis, group in one.groups.items()}
        differ: set[str] = set()
        for axis, group_name in sorted((axis, group_name) for group_name, axis in axis_of.items()):
            group, indices = by_group[group_name]
            names = [held[index].name for index in indices]
            said = zlib.crc32("\n".join(names).encode())
            if not _equal(torch.tensor([said], device=self._device), group).all():
                raise TrainingError(
                    f"ranks that are replicas along {axis} hold tensors of different names: this "
                    f"one has {len(names)}, {names[0]} to {names[-1]}"
                )
            equal = _equal(mine[torch.tensor(indices, device=self._device)], group)
            differ |= {name for name, same in zip(names, equal.tolist(), strict=True) if not same}
        return differ

    def _details(self, held: Sequence[Held], mine: torch.Tensor, differ: set[str]) -> list[Digest]:
        """The digests that all ranks have of what differs anywhere."""
        order = {one.name: index for index, one in enumerate(held)}
        first = sorted(differ, key=order.__getitem__)[:MOST_NAMED]
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, first)
        wanted = dict.fromkeys(name for names in everywhere for name in names)
        numbers = mine.tolist()
        known = [
            Digest(name=name, part=held[order[name]].part, digest=numbers[order[name]], rank=dist.get_rank(),
                   host=socket.gethostname())
            for name in wanted
            if name in order
        ]  # fmt: skip
        dist.all_gather_object(everywhere, known)
        return [one for of_rank in everywhere for one in of_rank]


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What one rank has of one part of a tensor."""

    name: str
    part: str
    digest: int
    rank: int
    host: str


def _equal(numbers: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Whether each number (int64) is the same on all ranks of a group: where the greatest is the least."""
    both = torch.cat([numbers, ~numbers])  # ~ turns the order round, and overflows nowhere
    dist.all_reduce(both, op=dist.ReduceOp.MAX, group=group)
    greatest, least = both.chunk(2)
    return greatest == ~least


def drifted(step: int, known: Sequence[Digest]) -> TrainingError:
    """The error that names who differs from the majority, tensor by tensor."""
    lines = []
    suspects: Counter[str] = Counter()
    copies: dict[tuple[str, str], list[Digest]] = {}
    for one in known:
        copies.setdefault((one.name, one.part), []).append(one)
    for (name, part), those in copies.items():
        counts = Counter(one.digest for one in those).most_common()
        if len(counts) == 1:
            continue
        at = "" if part == WHOLE else f", {part}"
        if counts[0][1] == counts[1][1]:
            versions = [_ranks([one for one in those if one.digest == digest]) for digest, _ in counts]
            lines.append(f"{name}{at}: {' against '.join(versions)}, without a majority")
            continue
        left = [one for one in those if one.digest != counts[0][0]]
        suspects.update(dict.fromkeys((one.host for one in left), 1))
        right = f"{counts[0][1]} other ranks" if counts[0][1] > 1 else "the other rank"
        lines.append(f"{name}{at}: {_ranks(left)} differ from {right}")
    shown = lines[:MOST_NAMED]
    if len(lines) > MOST_NAMED:
        shown.append(f"... and {len(lines) - MOST_NAMED} more")
    blamed = " and ".join(suspects) or "one of these hosts"
    return TrainingError(
        f"step {step}: replicas that must be equal to the bit are not",
        hint="\n".join(
            [
                *shown,
                f"{blamed} may compute or store wrongly: test the hardware, and resume from an earlier "
                "checkpoint",
            ]
        ),
    )


def _ranks(those: Sequence[Digest]) -> str:
    """``rank 3 (host b)``, of several ``ranks 3 and 4 (host b), 9 (host c)``."""
    by_host: dict[str, list[int]] = {}
    for one in those:
        by_host.setdefault(one.host, []).append(one.rank)
    said = ", ".join(f"{' and '.join(map(str, ranks))} (host {host})" for host, ranks in by_host.items())
    return f"rank{'s' if len(those) > 1 else ''} {said}"
