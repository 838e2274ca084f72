"""A resume is the same run, or says so."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hekaton.config.base import toml_value
from hekaton.errors import CheckpointError
from hekaton.identity.history import Change, history_in
from hekaton.identity.kept import Identity
from hekaton.identity.values import shown

log = logging.getLogger("hekaton")


def compare(
    identity: Identity,
    describe: Mapping[str, Any],
    *,
    step: int,
    accepted: Sequence[str],
    not_loaded: Collection[str] = (),
) -> list[Change]:
    """Compare a run with the step that it resumes from, and log every change that means something.

    :param describe: as the step's manifest has it.
    :param accepted: ``checkpoint.accept_changes``.
    :param not_loaded: parts of the state that are reset.
    :returns: the changes of the whole run, those of earlier resumes first.
    :raises CheckpointError: for changes that would make it another run, and are not accepted.
    """
    notices, refused = identity.changes_since(describe, step=step, not_loaded=not_loaded)
    wrong = [
        change
        for change in refused
        if not any(change.field == one or change.field.startswith(f"{one}.") for one in accepted)
    ]
    if wrong:
        raise _refusal(wrong, step)
    if "identity" not in describe and "config" in describe:
        log.info(
            "notice: step %d was saved before runs kept their identity: the configuration is compared, but "
            "neither code, versions nor the model's own configuration",
            step,
        )
    changes = [*refused, *notices]
    for change in changes:
        log.info("notice: since step %d something has changed: %s", step, change)
    return [*history_in(describe), *changes]


def _refusal(wrong: Sequence[Change], step: int) -> CheckpointError:
    said = "; ".join(
        f"{change.field} was {shown(change.was)} and is now {shown(change.now)}" for change in wrong
    )
    names = toml_value(list(dict.fromkeys(_named(change.field) for change in wrong)), width=1000)
    ways = [
        "set it back" if len(wrong) == 1 else "set them back",
        f"where it is intended: [checkpoint] accept_changes = {names}",
    ]
    if any(change.field == "optimizer.name" for change in wrong):
        ways.append('or reset its state: [checkpoint] exclude_from_loading = ["optimizer"]')
    error = CheckpointError(f"step {step} is of another run: {said}", hint="\n".join(ways))
    error.everywhere = True
    return error


def _named(field: str) -> str:
    return field.removesuffix(".content")
