"""Tensor parallel with tensorwise float8: what ranks gather is cast first, with one scale for all of them.

A layer of torchao then computes with what it is given, so that casting before the gather and after it are the
same, bit for bit, and half of what bfloat16 takes is sent. Bytes are sent, which every backend can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel
from torch.distributed.tensor.placement_types import Placement
from torch.overrides import TorchFunctionMode
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_training_tensor import (
    Float8TrainingTensor,
    GemmInputRole,
    LinearMMConfig,
    hp_tensor_and_scale_to_float8,
)
from torchao.float8.float8_utils import amax_to_scale

from hekaton.draft import Draft
from hekaton.parallel.plan import module_names
from hekaton.parallel.tensor import TensorContext
from hekaton.patterns import resolve
from hekaton_float8.sections import Float8Section

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

STYLES = {"rowwise": "float8_rowwise", "gathering_colwise": "float8_gathering_colwise"}
"""Style of a converted layer -> that which gathers in float8."""
NORM, GATHERING_NORM = "sequence_norm", "float8_sequence_norm"


def with_float8_styles(draft: Draft, converted: Collection[str], norms: Collection[str]) -> Draft:
    """The draft whose plan gathers in float8 what converted layers alone read.

    :param converted: the names of those layers.
    :param norms: the modules whose outputs only they read, see :func:`read_only_by`.
    """
    styles = resolve(draft.plan.tensor, module_names(draft.model), what=f"plan of {draft.what}, tensor")
    for name, style in styles.items():
        if name in converted:
            styles[name] = STYLES.get(style, style)
        elif name in norms and style == NORM:
            styles[name] = GATHERING_NORM
    return replace(draft, plan=replace(draft.plan, tensor=styles))


def read_only_by(model: nn.Module, layers: Collection[str]) -> set[str]:
    """The modules whose outputs are read by the products of these linear layers and by nothing else.

    The model is called once on the meta device, with a row of tokens. Of one that takes other inputs, nothing
    is known, and its norms gather as they did.
    """
    weights = {id(model.get_submodule(name).weight) for name in layers}
    readers = _Readers(weights)
    hooks = [
        module.register_forward_hook(readers.gives(name))
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    try:
        with torch.no_grad(), readers:
            model(torch.zeros(1, 16, dtype=torch.int64, device="meta"))
    except (TypeError, ValueError, RuntimeError):
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name in readers.by_layers if name not in readers.by_others}


class _Readers(TorchFunctionMode):
    """Who reads the outputs of modules: ``by_layers`` and ``by_others`` are the names of these modules."""

    def __init__(self, weights: Collection[int]) -> None:
        super().__init__()
        self._weights = weights
        self._givers: dict[int, tuple[str, torch.Tensor]] = {}  # keeps each tensor, so that ids stay its own
        self.by_layers: set[str] = set()
        self.by_others: set[str] = set()

    def gives(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                self._givers[id(output)] = (name, output)

        return hook

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = [self._givers[id(one)][0] for one in _tensors((args, kwargs)) if id(one) in self._givers]
        if found and getattr(func, "__name__", "") not in _ASKING:
            product = func is nn.functional.linear and id(args[1]) in self._weights
            (self.by_layers if product else self.by_others).update(found)
        return func(*args, **kwargs)


_ASKING = {"__get__", "size", "dim", "numel", "__len__", "stride", "is_floating_point"}
"""Functions that ask for a tensor's shape or type."""


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def float8_sequence_norm(section: Any, context: TensorContext) -> ParallelStyle:
    """As ``sequence_norm``, whose outputs are cast to float8 before they are gathered."""
    return _Norm(_between_modules(context), products(section))


def float8_gathering_colwise(section: Any, context: TensorContext) -> ParallelStyle:
    """As ``gathering_colwise``, whose input is cast to float8 before it is gathered."""
    return _GatheringColwise(input_layouts=_between_modules(context))


def float8_rowwise(section: Any, context: TensorContext) -> ParallelStyle:
    """As ``rowwise``, which gathers the gradients of its outputs in float8."""
    return _Rowwise(output_layouts=_between_modules(context))


def _between_modules(context: TensorContext) -> Placement:
    return Shard(1) if context.sequence_parallel else Replicate()


def products(section: Float8Section) -> LinearMMConfig:
    """How the layers of this section multiply."""
    from hekaton_float8.linear import as_torchao

    config = as_torchao(section)
    return Float8Linear(16, 16, bias=False, device="meta", config=config).linear_mm_config


class _Norm(ParallelStyle):
    def __init__(self, layout: Placement, products: LinearMMConfig) -> None:
        self._layout = layout
        self._products = products

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(
            _: nn.Module, inputs: tuple[torch.Tensor, ...], mesh: DeviceMesh
        ) -> tuple[torch.Tensor, ...]:
            return (DTensor.from_local(inputs[0], mesh, [self._layout], run_check=False), *inputs[1:])

        def leave(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Any:
            return CastAndGather.apply(output, self._products)  # type: ignore[no-untyped-call]

        return distribute_module(module, device_mesh, None, enter, leave)


class _GatheringColwise(ColwiseParallel):
    @staticmethod
    def _prepare_input_fn(
        input_layouts: Any, desired_input_layouts: Any, mod: Any, inputs: Any, device_mesh: DeviceMesh
    ) -> Any:
        x = inputs[0]
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, device_mesh, input_layouts, run_check=False)
        return CastAndGather.apply(x, mod.linear_mm_config)  # type: ignore[no-untyped-call]


class _Rowwise(RowwiseParallel):
    @staticmethod
    def _prepare_output_fn(
        output_layouts: Any, use_local_output: bool, mod: Any, outputs: Any, device_mesh: DeviceMesh
    ) -> Any:
        if mod.bias is not None:  # whose gradient is the sum of gradients that were not cast
            plain: Any = RowwiseParallel._prepare_output_fn
            return plain(output_layouts, use_local_output, mod, outputs, device_mesh)
        scatter: Any = ScatterAndGatherGradients.apply
        outputs = scatter(outputs, output_layouts, mod.linear_mm_config)
        return outputs.to_local() if use_local_output else outputs


@torch.compiler.allow_in_graph
class CastAndGather(torch.autograd.Function):
    """A DTensor cast to E4M3 with one scale, and gathered; its gradient is summed and cut again."""

    @staticmethod
    def forward(ctx: Any, x: DTensor, products: LinearMMConfig) -> DTensor:
        ctx.placements = x.placements
        return cast_and_gather(x, torch.float8_e4m3fn, products, GemmInputRole.INPUT)

    @staticmethod
    def backward(ctx: Any, *grads: DTensor) -> tuple[DTensor, None]:
        return grads[0].redistribute(placements=ctx.placements), None


@torch.compiler.allow_in_graph
class ScatterAndGatherGradients(torch.autograd.Function):
    """Partial sums that are added up, in parts or whole, and whose gradient is cast to E5M2 and gathered."""

    @staticmethod
    def forward(ctx: Any, x: DTensor, placements: Any, products: LinearMMConfig) -> DTensor:
        ctx.products = products
        return x.redistribute(placements=placements)

    @staticmethod
    def backward(ctx: Any, *grads: DTensor) -> tuple[DTensor, None, None]:
        gathered = cast_and_gather(grads[0], torch.float8_e5m2, ctx.products, GemmInputRole.GRAD_OUTPUT)
        return gathered, None, None


def cast_and_gather(x: DTensor, dtype: torch.dtype, products: LinearMMConfig, role: GemmInputRole) -> DTensor:
    """``x`` in float8, whole on every rank, with the scale of the whole.

    :param x: cut by one dim, or whole, on a mesh of one axis.
    """
    amax: Any = x.abs().max()
    cast: Any = hp_tensor_and_scale_to_float8(
        x.to_local(), amax_to_scale(amax.full_tensor(), dtype), dtype, products, role
    )
    as_bytes = cast._data.view(torch.uint8)
    bits = DTensor.from_local(as_bytes, x.device_mesh, x.placements, run_check=False).full_tensor()
    whole = Float8TrainingTensor(bits.view(dtype), cast._scale, x.dtype, products, role)
    return DTensor.from_local(whole, x.device_mesh, [Replicate()], run_check=False)
