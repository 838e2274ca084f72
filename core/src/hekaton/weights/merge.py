"""The tensors of a converted model as those of the model as it was, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hekaton.draft import Merge
from hekaton.errors import PluginError
from hekaton.weights.lazy import LazyTensor, Region


def merged(merges: Sequence[Merge], ours: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of a converted model as those of the model as it was."""
    used = {part for merge in merges for part in merge.parts}
    tensors = {name: tensor for name, tensor in ours.items() if name not in used}
    for merge in merges:
        tensors[merge.into] = _merged(merge, [ours[part] for part in merge.parts])
    return tensors


def unmerged(merges: Sequence[Merge], theirs: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of the model as it was under their names in a converted one; what a merge adds to them is
    not there, and keeps its initial values."""
    names = {merge.into: merge.parts[merge.like] for merge in merges}
    return {names.get(name, name): tensor for name, tensor in theirs.items()}


def _merged(merge: Merge, parts: Sequence[LazyTensor]) -> LazyTensor:
    like = parts[merge.like]

    def load(region: Region) -> torch.Tensor:
        made = merge.make([part.read() for part in parts])
        if not isinstance(made, torch.Tensor) or tuple(made.shape) != tuple(like.shape):
            found = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise PluginError(
                f"the merge of '{merge.into}' makes {found}, not {tuple(like.shape)} as "
                f"'{merge.parts[merge.like]}', which it is like"
            )
        return made.to(like.dtype)[region]

    return LazyTensor(like.shape, like.dtype, load)


def as_unconverted(merges: Sequence[Merge], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Live tensors of a converted model under their names in the model as it was, without what was added."""
    names = {merge.parts[merge.like]: merge.into for merge in merges}
    others = added(merges)
    return {names.get(name, name): tensor for name, tensor in tensors.items() if name not in others}


def added(merges: Sequence[Merge]) -> frozenset[str]:
    """The tensors that only the converted model has."""
    return frozenset(part for merge in merges for i, part in enumerate(merge.parts) if i != merge.like)
