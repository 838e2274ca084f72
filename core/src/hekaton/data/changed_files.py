"""Which files of a dataset are others than those that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hekaton.data import KnownFiles
from hekaton.data.feed import Source

MOST = 1000
"""Files whose contents are kept with each step; of more, none is."""
_NAMED = 5


def files_of(sources: Sequence[Source]) -> dict[str, str]:
    """What each file of the sources has in it, as far as they know their files."""
    files = {
        f"source '{source.name}': {name}" if source.name else name: content
        for source in sources
        if isinstance(source.documents, KnownFiles)
        for name, content in source.documents.files().items()
    }
    return files if len(files) <= MOST else {}


def changed_files(saved: Any, now: Mapping[str, str]) -> list[str]:
    """A line for each file that differs, the first of them; other names of the same content do not count.

    :param saved: what :func:`files_of` gave, as a file has it; anything else says nothing.
    """
    if not isinstance(saved, Mapping) or not saved or not now:
        return []
    before = {str(name): str(content) for name, content in saved.items()}
    lines = [f"changed: {name}" for name in before if name in now and now[name] != before[name]]
    contents = set(now.values())
    lines += [f"gone: {name}" for name in before if name not in now and before[name] not in contents]
    contents = set(before.values())
    lines += [f"new: {name}" for name in now if name not in before and now[name] not in contents]
    more = [f"and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return [*lines[:_NAMED], *more]
