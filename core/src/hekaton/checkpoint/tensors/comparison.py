"""Whether the tensors of a checkpoint are those of the run, before any of them is touched."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hekaton.checkpoint.disk.manifest import MODEL
from hekaton.checkpoint.disk.stored import StoredTensors
from hekaton.errors import CheckpointError

_SHOWN = 4

Parts = Mapping[str, Mapping[str, torch.Tensor]]


def stored_key(part: str, name: str) -> str:
    """The key on disk: the model's tensors have their plain names, as every other tool expects them."""
    return name if part == MODEL else f"{part}.{name}"


def part_of(key: str, parts: Iterable[str]) -> str:
    """The part that a key on disk belongs to, of the ``parts`` that the checkpoint has."""
    return next((part for part in parts if part != MODEL and key.startswith(f"{part}.")), MODEL)


def flat(parts: Parts) -> dict[str, torch.Tensor]:
    """All tensors under their keys on disk."""
    return {
        stored_key(part, name): tensor for part, tensors in parts.items() for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class Differences:
    """How what is wanted differs from what is there; keys as on disk."""

    missing: tuple[str, ...]
    """Wanted, and not in the checkpoint."""
    unwanted: tuple[str, ...]
    """In the checkpoint, and not wanted."""
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Key, shape in the checkpoint, shape here."""
    dtypes: tuple[tuple[str, str, str], ...]
    """Key, dtype in the checkpoint, dtype here: converted by loading, so worth a word and no error."""

    @property
    def any(self) -> bool:
        return bool(self.missing or self.unwanted or self.shapes)

    def __str__(self) -> str:
        lines = []
        if self.missing:
            lines.append(f"not in the checkpoint ({len(self.missing)}): {_few(self.missing)}")
        if self.unwanted:
            lines.append(f"only in the checkpoint ({len(self.unwanted)}): {_few(self.unwanted)}")
        if self.shapes:
            shown = [f"{key} is {there} in the checkpoint, {here} here" for key, there, here in self.shapes]
            lines.append(f"of another shape ({len(shown)}): {_few(shown)}")
        return "\n".join(lines)


class DoesNotFit(CheckpointError):
    """The tensors of a checkpoint are not those of the run; the same on all ranks.

    :param wrong: the parts that differ. Of these, only the model's tensors are listed where they are among
        them: the optimizer's follow them.
    :param held: the parts that the checkpoint has.
    :param models: what the model is called there, and here.
    """

    wrong: Mapping[str, Differences]
    folder: str

    def __init__(
        self,
        folder: object,
        wrong: Mapping[str, Differences],
        held: Collection[str],
        *,
        models: tuple[str, str],
    ) -> None:
        self.wrong, self.folder = wrong, str(folder)
        listed = [MODEL] if MODEL in wrong else wrong
        lines = [
            str(wrong[part]) if part in held else f"it holds no '{part}', only: {', '.join(held)}"
            for part in listed
        ]
        if list(wrong) == ["optimizer"]:
            lines.append('or reset its state: [checkpoint] exclude_from_loading = ["optimizer"]')
        super().__init__(
            f"the checkpoint {folder} ({models[0]}) does not fit this run ({models[1]})",
            hint="\n".join(lines),
        )
        self.everywhere = True

    @property
    def of_model(self) -> bool:
        """Whether the model is another one, and not the rest of the state alone."""
        return MODEL in self.wrong

    def lacks_only(self, names: Collection[str]) -> bool:
        """Whether the checkpoint has the whole model but tensors of these ``names``."""
        of_model = self.wrong[MODEL]
        return not of_model.unwanted and not of_model.shapes and set(of_model.missing) <= set(names)


def compare(wanted: Parts, stored: StoredTensors, stored_parts: Iterable[str]) -> dict[str, Differences]:
    """The differences of each wanted part, as this rank sees them."""
    keys: dict[str, list[str]] = {}
    stored_parts = list(stored_parts)
    for key in stored:
        keys.setdefault(part_of(key, stored_parts), []).append(key)
    found = {}
    for part, tensors in wanted.items():
        here = {stored_key(part, name): tensor for name, tensor in tensors.items()}
        both = [key for key in here if key in stored]
        found[part] = Differences(
            missing=tuple(key for key in here if key not in stored),
            unwanted=tuple(key for key in keys.get(part, ()) if key not in here),
            shapes=tuple(
                (key, stored[key].shape, tuple(here[key].shape))
                for key in both
                if stored[key].shape != tuple(here[key].shape)
            ),
            dtypes=tuple(
                (key, stored[key].dtype, _name(here[key].dtype))
                for key in both
                if stored[key].dtype != _name(here[key].dtype)
            ),
        )
    return found


def united(of_ranks: Sequence[Differences]) -> Differences:
    """The differences of the whole run: what any rank misses, and what none of them wants."""
    unwanted = set(of_ranks[0].unwanted).intersection(*(one.unwanted for one in of_ranks[1:]))
    return Differences(
        missing=tuple(dict.fromkeys(key for one in of_ranks for key in one.missing)),
        unwanted=tuple(key for key in of_ranks[0].unwanted if key in unwanted),
        shapes=tuple(dict.fromkeys(shape for one in of_ranks for shape in one.shapes)),
        dtypes=tuple(dict.fromkeys(dtype for one in of_ranks for dtype in one.dtypes)),
    )


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
