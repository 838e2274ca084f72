"""What one step of a run sends and holds, observed at the dispatcher, which every operator goes through."""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from hekaton.mesh import Meshes
from hekaton.parallel.plan import ParallelPlan
from hekaton.patterns import compile_pattern, with_owners

# torch's operators for one kind of communication, under the name that people know it by.
_KINDS = {
    "all_gather": ("_allgather_base_", "allgather_", "allgather_into_tensor_coalesced_",
                   "all_gather_into_tensor", "all_gather_into_tensor_out",
                   "all_gather_into_tensor_coalesced"),
    "reduce_scatter": ("_reduce_scatter_base_", "reduce_scatter_", "reduce_scatter_tensor_coalesced_",
                       "reduce_scatter_tensor", "reduce_scatter_tensor_coalesced"),
    "all_reduce": ("allreduce_", "allreduce_coalesced_", "all_reduce", "all_reduce_", "all_reduce_coalesced"),
    "all_to_all": ("alltoall_", "alltoall_base_", "all_to_all_single", "shard_dim_alltoall"),
    "send": ("send",),
    "receive": ("recv_", "recv_any_source_"),
}  # fmt: skip
_KIND_OF = {operator: kind for kind, operators in _KINDS.items() for operator in operators}
_NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")
_NOTHING_SENT = ("wait_tensor",)


@dataclass(frozen=True)
class Message:
    """One kind of communication.

    :param phase: ``forward`` or ``backward`` of a module; ``step`` for what belongs to none (the number of
        targets, the loss, what pipeline stages pass on, their gradients); ``optimizer``.
    :param module: the module at work, in backward its block, numbers in its name folded to ``*``; empty for
        the model as a whole.
    :param kind: ``all_gather``, ``reduce_scatter``, ``all_reduce``, ``all_to_all``, ``send``, ``receive``.
    :param axis: the mesh axis whose ranks take part, and ``ranks`` how many they are.
    :param size: bytes of the whole tensor on one rank: what is gathered, before it is scattered, or sent.
    """

    phase: str
    module: str
    kind: str
    axis: str
    ranks: int
    size: int


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the communication of this rank, and the most memory that it holds at once, on fake tensors.

    torch's own ``CommDebugMode`` records neither sizes nor groups, and its ``MemTracker`` stops at a second
    forward pass, which accumulation and pipelines have.

    :param mode: whose tensors count as memory.
    :ivar phase: what communication outside of modules and of backward belongs to.
    :ivar messages: how often each message was sent, in the order of their first time.
    :ivar peak: bytes of the storages that were made while observing, at their most.
    """

    def __init__(
        self, parts: Iterable[nn.Module], plan: ParallelPlan, meshes: Meshes, mode: FakeTensorMode
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.messages: dict[Message, int] = {}
        self.peak = 0
        self.phase = "step"
        self._mode = mode
        self._axes = _axes(meshes)
        self._modules = _ModuleAtWork(parts, plan)
        self._held = 0
        self._sizes: MutableMapping[torch.UntypedStorage, list[int]] = WeakIdKeyDictionary()
        self._propagating = False
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Observer:
        for watching in (self._modules.followed(), self._resizing_seen(), self._shape_propagation_ignored()):
            self._ending.enter_context(watching)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._ending.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        from torch.distributed.tensor import DTensor

        if any(issubclass(type_, DTensor) for type_ in types):
            return NotImplemented  # it comes by again, as the operators on its local tensor
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__
        if func.namespace in _NAMESPACES and operator not in _NOTHING_SENT:
            self._record(operator, args, result)
        for tensor in _tensors(result):
            if not self._propagating and getattr(tensor, "fake_mode", None) is self._mode:
                self._hold(tensor.untyped_storage())
        return result

    def _record(self, operator: str, args: tuple[Any, ...], result: Any) -> None:
        axis, ranks = self._axis(args)
        phase, module = self._modules.now()
        message = Message(
            phase=phase or self.phase,
            module=re.sub(r"\.\d+(?=\.|$)", ".*", module),
            kind=_KIND_OF.get(operator, operator),
            axis=axis,
            ranks=ranks,
            size=max(sum(map(_size, _tensors(value))) for value in (*args, result)),
        )
        self.messages[message] = self.messages.get(message, 0) + 1

    def _axis(self, args: tuple[Any, ...]) -> tuple[str, int]:
        """The axis of the group that an operator was given, as an object or by its name, and its size."""
        for value in args:
            name = value
            if isinstance(value, torch.ScriptObject):
                with contextlib.suppress(RuntimeError):  # what says how to reduce is such an object too
                    name = dist.ProcessGroup.unbox(value).group_name
            if isinstance(name, str) and name in self._axes:
                return self._axes[name]
        return "other", 0

    def _hold(self, storage: torch.UntypedStorage) -> None:
        """Count a storage from when it is made, through changes of its size, to when it goes."""
        if storage not in self._sizes:
            self._sizes[storage] = sizes = [0]
            weakref.finalize(storage, self._let_go, sizes)
        size, before = storage.size(), self._sizes[storage]
        self._held += size - before[0]
        before[0] = size
        self.peak = max(self.peak, self._held)

    def _let_go(self, sizes: list[int]) -> None:
        self._held -= sizes[0]

    @contextlib.contextmanager
    def _resizing_seen(self) -> Iterator[None]:
        """FSDP frees what it has gathered by shrinking its storage, which is not an operator."""
        resize = torch.UntypedStorage.resize_

        def resize_and_count(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            if storage in self._sizes:
                self._hold(storage)

        with _replaced(torch.UntypedStorage, "resize_", resize_and_count):
            yield

    @contextlib.contextmanager
    def _shape_propagation_ignored(self) -> Iterator[None]:
        """To know the shape of a result, DTensor calls operators on tensors that nobody holds."""
        from torch.distributed.tensor._sharding_prop import ShardingPropagator

        propagate = ShardingPropagator._propagate_tensor_meta_non_cached

        def propagate_unobserved(propagator: ShardingPropagator, schema: Any) -> Any:
            self._propagating = True
            try:
                return propagate(propagator, schema)
            finally:
                self._propagating = False

        with _replaced(ShardingPropagator, "_propagate_tensor_meta_non_cached", propagate_unobserved):
            yield


class _ModuleAtWork:
    """The module whose forward or backward runs: in forward the innermost one, in backward its block.

    torch's ``ModuleTracker`` keeps the graphs of recomputed blocks alive, which would count as memory.
    """

    def __init__(self, parts: Iterable[nn.Module], plan: ParallelPlan) -> None:
        self._names = {module: name for part in parts for name, module in part.named_modules()}
        self._is_block = compile_pattern(plan.block).fullmatch
        self._forward: list[str] = []
        self._backward = ""

    def now(self) -> tuple[str, str]:
        """``forward`` or ``backward`` and the module's name, that of the whole model being empty; neither
        where no module is at work."""
        if torch._C._current_graph_task_id() != -1:
            inside = self._forward or [self._backward]  # a block that is computed again runs its forward
            return "backward", next(filter(self._is_block, with_owners(inside[-1])), inside[-1])
        return ("forward", self._forward[-1]) if self._forward else ("", "")

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        hooks = (register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave))
        yield
        for hook in hooks:
            hook.remove()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if module in self._names:
            self._when_backward_reaches(inputs, self._forward[-1] if self._forward else "")
            self._forward.append(self._names[module])

    def _leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if module in self._names:
            self._when_backward_reaches(outputs, self._forward.pop())

    def _when_backward_reaches(self, tensors: Any, name: str) -> None:
        def reached(gradient: torch.Tensor) -> None:
            self._backward = name

        for tensor in _tensors(tensors):
            if tensor.requires_grad:
                tensor.register_hook(reached)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _axes(meshes: Meshes) -> dict[str, tuple[str, int]]:
    """Name of a process group -> the axis that it is of, and its size; an axis of its own goes before one
    that several were flattened into."""
    axes: dict[str, tuple[str, int]] = {}
    experts = (meshes.experts,) if "experts" in vars(meshes) else ()
    for mesh in (*meshes.flattened, meshes.report, meshes.loss, *experts, meshes.batch, meshes.dense):
        for axis in mesh.mesh_dim_names or ():
            group = mesh.get_group(axis)
            axes[group.group_name] = axis, group.size()
    return axes


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
