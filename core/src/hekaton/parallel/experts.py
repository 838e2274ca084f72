"""Expert parallel: layers of experts whose experts lie on different ranks, on a mesh of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from torch.distributed import ProcessGroup

from hekaton.mesh import Meshes, ParallelDims
from hekaton.parallel.plan import matching
from hekaton.parallel.tensor import StyleMaker, TensorContext
from hekaton.patterns import resolve


class ExpertLayer(Protocol):
    """What the modules are that the ``experts`` entries of a plan name.

    :ivar n_experts: how many experts the layer has.
    :ivar experts: the module with the experts' tensors, which have one row each in dim 0. It computes its
        products with its attribute ``product``, a :class:`hekaton.grouped_products.GroupedProduct`, which a
        converter may replace.
    :ivar dispatcher: brings tokens to their experts and back; a layout may set another one.
    :ivar sequence_groups: the processes that hold other parts of the same sequences, for what is counted per
        sequence; the layout sets them.
    :ivar copies: how many ranks apply an expert to the same token, each a part of it; the layout sets it.
    :ivar even: give every expert the same number of tokens, whatever the router says.
    """

    n_experts: int
    experts: nn.Module
    dispatcher: Any
    sequence_groups: Sequence[ProcessGroup]
    copies: int
    even: bool


@dataclass(frozen=True, kw_only=True)
class ExpertGroup:
    """The processes among which experts are distributed, as a dispatcher is given them.

    :param ep: those that have different experts; rank ``r`` of ``n`` has the ``r``-th ``n``-th of them.
    :param etp: those that have different parts of the same experts, and tokens of their own each.
    """

    ep: ProcessGroup
    etp: ProcessGroup


def has_own_mesh(dims: ParallelDims) -> bool:
    """Whether experts lie on the mesh ``Meshes.experts``, and not on that of other parameters.

    Under tensor parallel always: its ranks send different tokens through the experts, whose gradients are
    then summed over them as over those of data parallel.
    """
    return dims.ep * dims.etp * dims.tp > 1


def prepare_experts(
    part: nn.Module,
    styles: Mapping[str, StyleMaker],
    meshes: Meshes,
    dims: ParallelDims,
    *,
    dispatcher: Callable[..., Any] | None,
    context: TensorContext,
    even: bool,
) -> None:
    """Cut the experts of each layer, and tell the layers of their neighbours.

    :param styles: name of a layer of experts -> what makes the style by which its ``experts`` are cut.
    :param dispatcher: takes the place of the layers' own, where experts are cut.
    """
    sequences = [meshes.batch[axis].get_group() for axis in ("cp", "tp") if getattr(dims, axis) > 1]
    layer: Any
    for name, layer in part.named_modules():
        if name not in styles:
            continue
        layer.sequence_groups = sequences
        layer.even = even
        if dims.ep * dims.etp > 1:
            styles[name](context)._apply(layer.experts, meshes.experts["ep", "etp"])
            layer.dispatcher = dispatcher
            layer.copies = dims.etp


def expert_entries(model: nn.Module, entries: Mapping[str, str], *, what: str) -> dict[str, str]:
    """Name of each layer of experts -> its style.

    :param entries: the ``experts`` entries of a plan.
    """
    return resolve(entries, [name for name, _ in model.named_modules()], what=f"plan of {what}, experts")


def expert_layers(model: nn.Module, entries: Mapping[str, str]) -> list[tuple[str, Any]]:
    """The layers of experts of a model, or of this stage of it, by name."""
    return list(matching(model, entries))


@dataclass(frozen=True)
class UnevenCut:
    """A dim of an expert tensor that a degree does not divide.

    :param field: ``expert_parallel_degree`` or ``expert_tensor_parallel_degree``.
    """

    field: str
    name: str
    size: int


def uneven_cuts(
    layer: Any, make_style: StyleMaker, context: TensorContext, dims: ParallelDims
) -> list[UnevenCut]:
    """What the degrees do not divide; of styles that tell their ``placements``, by name of tensor and for the
    axes ``ep`` and ``etp``. Others answer for themselves.

    :param layer: on the meta device, whole.
    """
    style: Any = make_style(context)
    found = []
    for name, placements in getattr(style, "placements", {}).items():
        shape = getattr(layer.experts, name).shape
        degrees = {"expert_parallel_degree": dims.ep, "expert_tensor_parallel_degree": dims.etp}
        for (field, degree), placement in zip(degrees.items(), placements, strict=True):
            size = shape[placement.dim] if hasattr(placement, "dim") else degree
            if size % degree:
                found.append(UnevenCut(field, name, size))
    return found
