"""The weight table: which tensor of a model is which of its Hugging Face counterpart. Both ways from one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from hekaton.errors import CheckpointError
from hekaton.weights.lazy import LazyTensor, same_values, whole
from hekaton.weights.ops import Op

LAYER, EXPERT = "{i}", "{e}"


@dataclass(frozen=True)
class Entry:
    """Tensors that belong together, and the ops from ours to theirs, in order; see :func:`entry`."""

    ours: tuple[str, ...]
    hf: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    layers: Collection[int] | None = None

    @property
    def repeats(self) -> bool:
        return any(LAYER in name for name in self.ours + self.hf)


def entry(
    ours: str | tuple[str, ...], hf: str | tuple[str, ...], *ops: Op, layers: Collection[int] | None = None
) -> Entry:
    """An entry of a weight table.

    :param ours: the name of a tensor of the model, or the names of several that are one entry together.
        ``{i}`` stands for the number of a layer, ``{e}`` for that of an expert. Where only one side has
        ``{e}``, its names are those of all experts, in order.
    :param hf: the name or names on the other side.
    :param ops: what makes theirs from ours, from left to right; back, it goes from right to left.
    :param layers: the layers that have it; by default all.
    """
    return Entry(
        (ours,) if isinstance(ours, str) else ours, (hf,) if isinstance(hf, str) else hf, ops, layers
    )


@dataclass(frozen=True, kw_only=True)
class Own:
    """A tensor of the model that the other side has no place for.

    :param name: ``{i}`` stands for the number of a layer.
    :param value: what every element is there, and becomes on the way back.
    :param always: whether another value cannot be exported; otherwise it is left out, being no part of what
        the model computes.
    :param layers: the layers that have it; by default all.
    """

    name: str
    shape: tuple[int, ...]
    value: float
    always: bool = True
    dtype: torch.dtype = torch.float32
    layers: Collection[int] | None = None


MAX_REPEATS = 1_000_000
"""Layers, times experts: what ``config.json`` says may be anything, and each has names in memory."""


@dataclass(frozen=True, kw_only=True)
class WeightTable:
    """One model in one configuration.

    :param entries: every tensor of the model once, and every tensor of the other side once.
    :param layers: how many layers ``{i}`` stands for.
    :param experts: how many experts ``{e}`` stands for.
    :param tied: name on the other side -> the name there that it repeats. It is not written; read, it may be
        absent, and is otherwise compared.
    :param own: tensors of the model that the other side has no place for.
    :param ignored: names on the other side that hold nothing of the model (``{i}`` as in entries).
    :param left_out: a part of the model there that this one is built without, in words -> its names there.
        Read, they are left out and the part is named in a notice.
    :param prefix: what the names on the other side may begin with, where the model is one of several in its
        files (``language_model.``). It is not written.
    :param others: the other models in such files, name -> what their names begin with (``vision`` ->
        ``("vision_model.",)``). They are refused, unless the reader says to leave them out.
    """

    entries: Sequence[Entry]
    layers: int = 0
    experts: int = 0
    tied: Mapping[str, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    own: Sequence[Own] = ()
    left_out: Mapping[str, Collection[str]] = field(default_factory=dict)
    prefix: str = ""
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layers * max(self.experts, 1) > MAX_REPEATS:
            experts = f" of {self.experts:,} experts" if self.experts else ""
            raise CheckpointError(
                f"{self.layers:,} layers{experts} are more than {MAX_REPEATS:,} that a model is read with"
            )

    @property
    def optional(self) -> frozenset[str]:
        """Names on the other side that may be absent there."""
        return frozenset({*self.tied, *self._ignored_names()}.union(*self.left_out.values()))

    def notices(self, theirs: Collection[str]) -> list[str]:
        """What a reader should know of the names on the other side, a line each."""
        there = {part: sum(name in names for name in theirs) for part, names in self.left_out.items()}
        there |= {other: sum(map(self._is_of(other), theirs)) for other in self.others}
        return [f"{part}: left out, {count} tensors" for part, count in there.items() if count]

    def own_names(
        self, theirs: Iterable[str], *, leave_out: Collection[str] = (), what: str
    ) -> dict[str, str]:
        """The names of the model's own tensors on the other side, without the prefix -> as they are there.

        :param leave_out: the other models that may be there.
        :param what: where ``theirs`` come from, for messages.
        :raises CheckpointError: for tensors of another model that is not to be left out, and for one to be
            left out that is not known.
        """
        for other in leave_out:
            if other not in self.others:
                known = f"known: {', '.join(self.others)}" if self.others else "there is nothing to leave out"
                raise CheckpointError(f"{what}: cannot leave out '{other}'", hint=known)
        own = list(theirs)
        for other in self.others:
            of_other = [name for name in own if self._is_of(other)(name)]
            if of_other and other not in leave_out:
                raise CheckpointError(
                    f"{what} holds a second model, {other}, which is not trained here: {listed(of_other)}",
                    hint=f"leave it out with 'hekaton convert from-hf --leave_out {other}', or in a run with "
                    f'checkpoint.initial_load_leave_out = ["{other}"]',
                )
            own = [name for name in own if not self._is_of(other)(name)]
        return {name.removeprefix(self.prefix): name for name in own}

    def _is_of(self, other: str) -> Callable[[str], bool]:
        return lambda name: name.startswith(self.others[other])

    def to_hf(self, ours: Mapping[str, LazyTensor], *, what: str) -> dict[str, LazyTensor]:
        """All tensors of the other side, made from the model's.

        :param what: where ``ours`` comes from, for messages.
        :raises CheckpointError: listing the names that are missing, and those that no entry has; for shapes
            that an op cannot take.
        """
        entries = list(self._expanded())
        own = {name: one for name, one in self.own_tensors().items() if one.always or name in ours}
        _same_names(ours, [*(name for one in entries for name in one.ours), *own], what)
        for name, one_of_us in own.items():
            if one_of_us.always and not _is_constant(ours[name], one_of_us.value):
                raise CheckpointError(
                    f"{what}: '{name}' is not {one_of_us.value:g} everywhere, and the other layout has no "
                    "place for it"
                )
        converted: dict[str, LazyTensor] = {}
        for one in entries:
            tensors = [ours[name] for name in one.ours]
            for op in one.ops:
                tensors = _applied(op.to_hf, tensors, one.ours, what)
            converted |= zip(one.hf, tensors, strict=True)
        return converted

    def from_hf(self, theirs: Mapping[str, LazyTensor], *, what: str) -> dict[str, LazyTensor]:
        """All tensors of the model, made from the other side's.

        :raises CheckpointError: as :meth:`to_hf`, and for a tied tensor that is not what it should repeat.
        """
        entries = list(self._expanded())
        found = [name for name in theirs if name not in self.optional]
        _same_names(found, self.hf_names(), what)
        for name, of in self.tied.items():
            if name in theirs and not same_values(theirs[name], theirs[of]):
                raise CheckpointError(
                    f"{what}: '{name}' differs from '{of}', which the model uses in its place",
                    hint="the weights are not tied: choose a flavor whose output is a tensor of its own",
                )
        converted: dict[str, LazyTensor] = {}
        for one in entries:
            tensors = [theirs[name] for name in one.hf]
            for op in reversed(one.ops):
                tensors = _applied(op.from_hf, tensors, one.hf, what)
            converted |= zip(one.ours, tensors, strict=True)
        return converted | {
            name: whole(torch.full(one.shape, one.value, dtype=one.dtype))
            for name, one in self.own_tensors().items()
        }

    def own_tensors(self) -> dict[str, Own]:
        """Those that the other side has no place for, by exact names."""
        return {
            one.name.replace(LAYER, str(layer)): one
            for one in self.own
            for layer in (range(self.layers) if LAYER in one.name else [0])
            if one.layers is None or layer in one.layers
        }

    def hf_names(self) -> list[str]:
        """The exact names on the other side that entries have."""
        return [name for one in self._expanded() for name in one.hf]

    def entries_of(self, ours: Iterable[str]) -> dict[str, Entry]:
        """The entry of each of these tensors of the model, with exact names.

        :raises CheckpointError: for one that no entry has.
        """
        entries = {name: one for one in self._expanded() for name in one.ours}
        unknown = [name for name in ours if name not in entries]
        if unknown:
            raise CheckpointError(f"no entry of the weight table has {listed(unknown)}")
        return {name: entries[name] for name in ours}

    def _expanded(self) -> Iterator[Entry]:
        """The entries with exact names, layer by layer."""
        for repeats, group in groupby(self.entries, key=lambda one: one.repeats):
            entries = list(group)
            for layer in range(self.layers) if repeats else [0]:
                for one in entries:
                    if not repeats or one.layers is None or layer in one.layers:
                        yield from self._of_layer(one, layer)

    def _of_layer(self, one: Entry, layer: int) -> Iterator[Entry]:
        ours, hf = ([name.replace(LAYER, str(layer)) for name in names] for names in (one.ours, one.hf))
        experts = range(self.experts)
        if _per_expert(ours) and _per_expert(hf):
            for expert in experts:
                yield Entry(_of_expert(ours, expert), _of_expert(hf, expert), one.ops)
        else:
            yield Entry(tuple(_all_experts(ours, experts)), tuple(_all_experts(hf, experts)), one.ops)

    def _ignored_names(self) -> set[str]:
        return {name.replace(LAYER, str(i)) for name in self.ignored for i in range(self.layers or 1)}


def _is_constant(tensor: LazyTensor, value: float) -> bool:
    values = tensor.read()
    return values.is_meta or bool((values == value).all())


def _of_expert(names: Sequence[str], expert: int) -> tuple[str, ...]:
    return tuple(name.replace(EXPERT, str(expert)) for name in names)


def _per_expert(names: Sequence[str]) -> bool:
    return any(EXPERT in name for name in names)


def _all_experts(names: Sequence[str], experts: range) -> Iterator[str]:
    for name in names:
        yield from [name.replace(EXPERT, str(e)) for e in experts] if EXPERT in name else [name]


def _applied(op: object, tensors: list[LazyTensor], names: Sequence[str], what: str) -> list[LazyTensor]:
    assert callable(op)
    try:
        result: list[LazyTensor] = op(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {', '.join(names)}: {error.message}") from error
    return result


def _same_names(found: Iterable[str], expected: Sequence[str], what: str) -> None:
    there, wanted = dict.fromkeys(found), dict.fromkeys(expected)
    assert len(wanted) == len(expected), "a table with a tensor in two entries"
    missing = [name for name in wanted if name not in there]
    unknown = [name for name in there if name not in wanted]
    if missing or unknown:
        lines = [f"{len(missing)} missing: {listed(missing)}"] if missing else []
        lines += [f"{len(unknown)} unknown: {listed(unknown)}"] if unknown else []
        raise CheckpointError(f"{what} does not hold the tensors of this model", hint="\n".join(lines))


def listed(names: Iterable[str]) -> str:
    """Names, those that differ in their numbers as one: ``layers.*.norm.weight (32)``."""
    shapes: dict[str, list[str]] = {}
    for name in names:
        shapes.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(name)
    return ", ".join(
        group[0] if len(group) == 1 else f"{shape} ({len(group)})" for shape, group in shapes.items()
    )
