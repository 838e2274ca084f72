"""Errors that a user sees without a traceback: what is wrong, where it came from, what to do."""

from __future__ import annotations

import contextlib
import difflib
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

AGAIN = 75
"""Exit status of a run that was told to end and has saved: start it again (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Exit status of what was told to end and has saved nothing."""
MOST = 20
"""Violations of one configuration that are printed; the others are counted."""


class HekatonError(Exception):
    """Something that a user can cause and cure.

    The command line prints it as ``error: MESSAGE`` with the origin and the hint indented below, and exits
    with status 2.

    :param message: what was wrong, naming the thing.
    :param origin: where it was set, for example ``my_run.toml, line 14`` or ``--training.steps``.
    :param hint: the cure, or the nearest valid choices.
    """

    exit_code = 2

    def __init__(self, message: str, *, origin: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.origin = origin
        self.hint = hint
        self.everywhere = False
        """Whether every rank raises it, with the same words: the first rank of each machine prints it."""
        self.rank = _rank()
        """The rank that raised it in a distributed run with a process group, ``None`` elsewhere."""
        self.raised_by = None if self.rank is None else (self.rank, socket.gethostname())
        """That rank and its host, which stay when the error is raised on other ranks, too."""

    def __reduce__(self) -> Any:
        """Other ranks, and the workers of a loader, send errors: their classes differ in what they are made
        of."""
        return _restored, (type(self), self.args), self.__dict__

    def __str__(self) -> str:
        lines = [self.message]
        if self.origin:
            lines.append(f"  from: {self.origin}")
        lines += [f"  {line}" for line in self.hint.splitlines()]
        return "\n".join(lines)


def _restored(kind: type[HekatonError], arguments: tuple[object, ...]) -> HekatonError:
    return kind.__new__(kind, *arguments)


class ConfigError(HekatonError):
    """The configuration is wrong.

    :param fields: the configuration fields that it is about (``lora.rank``): a check of the configuration
        adds where they were set.
    """

    def __init__(self, message: str, *, origin: str = "", hint: str = "", fields: Sequence[str] = ()) -> None:
        super().__init__(message, origin=origin, hint=hint)
        self.fields = tuple(fields)


class ConfigErrors(ConfigError):
    """Every violation of one configuration, reported together: the first ``MOST``, and how many are left."""

    def __init__(self, problems: Sequence[HekatonError]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.message for problem in problems[:MOST]) + self._more())

    def __str__(self) -> str:
        return "\nerror: ".join(str(problem) for problem in self.problems[:MOST]) + self._more()

    def _more(self) -> str:
        more = len(self.problems) - MOST
        return f"\nand {more} more errors" if more > 0 else ""


class PluginError(HekatonError):
    """A plugin is broken, clashes with another, or does not keep the contract of a hook."""


class UnknownName(HekatonError):
    """A run names something that no plugin contributes."""


class DataError(HekatonError):
    """A dataset or tokenizer cannot be read, or has nothing in it."""


class CheckpointError(HekatonError):
    """A checkpoint cannot be written, or is not whole, or does not fit the run."""


class TrainingError(HekatonError):
    """Training went wrong: its numbers are no longer finite, or the memory does not suffice."""


class Disagreement(HekatonError):
    """The processes of a run are not of one run: they differ in what must be the same."""


class RaisedElsewhere(HekatonError):
    """Another rank failed before this one; the message is empty where this machine has said why already."""


@contextlib.contextmanager
def about(thing: str) -> Iterator[None]:
    """Errors that are raised within begin with what they are about.

    :param thing: for example ``source 'web'``; nothing is added where it is empty.
    """
    try:
        yield
    except HekatonError as e:
        if thing:
            e.message = f"{thing}: {e.message}"
        raise


def _rank() -> int | None:
    # Noted when the error is made: the process group may be gone by the time that it is printed.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    rank: int = distributed.get_rank()
    return rank


def choices_hint(name: str, choices: Iterable[str], *, listed_by: str = "") -> str:
    """Say which valid choice is nearest to ``name``, and list them all.

    :param listed_by: what lists them, where they are too many for a message: only the nearest are then said.

    >>> print(choices_hint("lama3", ["llama3", "qwen3"]))
    did you mean 'llama3'?
    choose one of: llama3, qwen3
    """
    known = sorted(choices)
    near = [choice for choice in known if choice.lower() == name.lower()]
    near = near or difflib.get_close_matches(name, known, n=3 if listed_by else 1)
    listing = f"choose one of: {', '.join(known)}" if known else "there are none"
    if listed_by and known:
        listing = f"'{listed_by}' lists all {len(known)}"
    return f"did you mean {' or '.join(map(repr, near))}?\n{listing}" if near else listing
