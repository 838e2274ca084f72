"""Selective activation checkpointing by operator: keep what is costly to compute, recompute the rest.

Kept are matrix products, attention and what a reduce-scatter gave. Of the products every second is computed
again: in a transformer they cost memory and time alike, so that half of them is the point between keeping
all and keeping none that torchtitan and others train at.
"""

from __future__ import annotations

import difflib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from hekaton.errors import ConfigError

PRODUCTS = {"aten.mm.default": 1, "aten.addmm.default": 2, "aten._scaled_mm.default": 1}
"""Products of matrices, and which of their arguments is the weight."""

KEPT = (
    *PRODUCTS,
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten._scaled_dot_product_fused_attention_overrideable.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "higher_order.flex_attention",
    "torch_attn._varlen_attn.default",
    "_c10d_functional.reduce_scatter_tensor.default",
)

COMPILED_ALONE = "higher_order.inductor_compiled_code"
"""FlexAttention in a block that is not compiled; torch's compiler does not trace a policy that names it."""

Shape = tuple[int, ...]


def operator(name: str) -> Any:
    """The operator of torch that has a name such as ``aten.mm.default`` or ``higher_order.flex_attention``.

    :raises ConfigError: for a name that torch does not know.
    """
    import torch.nn.attention.flex_attention  # registers its operator
    import torch.nn.attention.varlen

    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, torch._ops.OpOverload | torch._ops.HigherOrderOperator):
        return found
    if isinstance(found, torch._ops.OpOverloadPacket):
        overloads: list[str] = found.overloads()  # type: ignore[no-untyped-call]
        hint = f"choose an overload: {', '.join(f'{name}.{overload}' for overload in overloads)}"
    else:
        near = difflib.get_close_matches(name, _operators(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "operators are named as in aten.mm.default"
    raise ConfigError(f"activation_checkpoint.save_ops: torch has no operator '{name}'", hint=hint)


def _operators() -> Iterator[str]:
    for name in torch._C._dispatch_get_all_op_names():
        dotted = name.replace("::", ".")
        yield dotted if dotted.count(".") > 1 else f"{dotted}.default"


def recomputed_linears(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers below which an entry of ``names`` is: ``moe.router.gate`` is the ``gate`` of each.

    :raises ConfigError: for a name that is that of another kind of module.
    """
    found = {}
    for path, module in model.named_modules():
        if any(f".{path}".endswith(f".{name}") for name in names):
            if not isinstance(module, nn.Linear):
                raise ConfigError(
                    "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns: "
                    f"'{path}' is a {type(module).__name__}, not a linear layer"
                )
            found[path] = module
    return found


def weight_shapes(linears: Sequence[nn.Linear]) -> frozenset[Shape]:
    """Shapes of the transposed weights, as products see them: whole, and this rank's part."""
    weights = [linear.weight for linear in linears]
    whole = {(weight.shape[1], weight.shape[0]) for weight in weights}
    local = [weight.to_local() for weight in weights if hasattr(weight, "to_local")]
    return frozenset(whole | {(weight.shape[1], weight.shape[0]) for weight in local})


def selective_contexts(
    save_ops: Sequence[str], recomputed: frozenset[Shape], *, compiled: bool = False
) -> Callable[[], Any]:
    """The ``context_fn`` of :func:`torch.utils.checkpoint.checkpoint` that keeps :data:`KEPT` and more.

    :param save_ops: further operators to keep; a product that is named here is kept every time.
    :param recomputed: shapes of the weights whose products are never kept, and not counted.
    :param compiled: whether the block is compiled, with the checkpoint in it.
    """
    always = frozenset(operator(name) for name in save_ops)
    products = {operator(name): at for name, at in PRODUCTS.items() if operator(name) not in always}
    kept = always.union(operator(name) for name in (KEPT if compiled else (*KEPT, COMPILED_ALONE)))
    return partial(_contexts, kept, products, recomputed)


class _Gathering(threading.local):
    now = False


_gathering = _Gathering()


def leave_gathering_out(module: nn.Module) -> None:
    """Have selective checkpointing see nothing of how FSDP gathers the parameters of a module in a block.

    It gathers them in other places, and not as often, when the block is computed again; torch (2.13) takes
    that for another computation (pytorch/torchtitan issue 3427).

    :param module: one that ``fully_shard`` has been called for, which runs its hooks between these two.
    """
    module.register_forward_pre_hook(_begin_gathering, prepend=True)
    module.register_forward_pre_hook(_end_gathering)


def _begin_gathering(*_: Any) -> None:
    _gathering.now = True


def _end_gathering(*_: Any) -> None:
    _gathering.now = False


@functools.cache
def _without_gathering(mode: Any) -> Any:
    """The mode of torch that records or gives back what operators computed, without those of FSDP."""

    class WithoutGathering(mode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if _gathering.now:
                return func(*args, **(kwargs or {}))
            return super().__torch_dispatch__(func, types, args, kwargs)

    return WithoutGathering


def _contexts(kept: frozenset[Any], products: dict[Any, int], recomputed: frozenset[Shape]) -> Any:
    # Anew for each block and forward; torch before 2.13 asks when recomputing too.
    count = {False: 0, True: 0}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op not in kept:
            return CheckpointPolicy.PREFER_RECOMPUTE
        if op in products:
            if tuple(args[products[op]].shape) in recomputed:
                return CheckpointPolicy.PREFER_RECOMPUTE
            count[context.is_recompute] += 1
            if count[context.is_recompute] % 2 == 0:
                return CheckpointPolicy.PREFER_RECOMPUTE
        return CheckpointPolicy.MUST_SAVE

    modes = create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]
    for mode in modes:
        mode.__class__ = _without_gathering(mode.__class__)
    return modes
