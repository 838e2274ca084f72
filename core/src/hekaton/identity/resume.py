"""A resume is the same run, or says so."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hekaton.config.base import toml_value
from hekaton.errors import CheckpointError
from hekaton.identity.history import Change, history_in
from hekaton.identity.kept import Identity
from hekaton.identity.values import shown

if TYPE_CHECKING:
    from hekaton.checkpoint.tensors.comparison import DoesNotFit

log = logging.getLogger("hekaton")

_SHOWN = 6


def compare(
    identity: Identity,
    describe: Mapping[str, Any],
    *,
    step: int,
    accepted: Sequence[str],
    not_loaded: Collection[str] = (),
    unfit: DoesNotFit | None = None,
    added: Collection[str] = (),
) -> list[Change]:
    """Compare a run with the step that it resumes from, and log every change that means something.

    :param describe: as the step's manifest has it.
    :param accepted: ``checkpoint.accept_changes``.
    :param not_loaded: parts of the state that are reset.
    :param unfit: the error where the step's tensors are not those of the run.
    :param added: the model's tensors that converters have added.
    :returns: the changes of the whole run, those of earlier resumes first.
    :raises CheckpointError: for changes that would make it another run, and are not accepted; ``unfit``, with
        what changed and the ways on.
    """
    notices, refused = identity.changes_since(describe, step=step, not_loaded=not_loaded)
    if unfit is not None and unfit.of_model:
        raise explained(unfit, [*refused, *notices], added=added)
    wrong = [
        change
        for change in refused
        if not any(change.field == one or change.field.startswith(f"{one}.") for one in accepted)
    ]
    if wrong:
        raise _refusal(wrong, step)
    if unfit is not None:
        raise explained(unfit, [*refused, *notices])
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


def explained(
    unfit: DoesNotFit, changes: Sequence[Change], *, resumed: bool = True, added: Collection[str] = ()
) -> DoesNotFit:
    """The error of a checkpoint that does not fit, with what changed since it was saved and the ways on.

    :param resumed: rather than started with its weights.
    :param added: the model's tensors that converters have added.
    """
    part = next(iter(unfit.wrong))
    changes = sorted(changes, key=lambda one: not one.field.startswith(f"{part}."))
    if changes:
        unfit.message += f": {_listed(changes[:_SHOWN])}"
        more = len(changes) - _SHOWN
        unfit.message += f"; and {more} more changes" if more > 0 else ""
    if unfit.of_model:
        ways = ["set back what changed of the model"] if changes else []
        if not resumed:
            ways.append("start with new weights: without checkpoint.initial_load_path")
        elif unfit.lacks_only(added):
            ways.append(
                "start a run of its own with these weights: another job.dump_folder, and "
                f"checkpoint.initial_load_path = {toml_value(unfit.folder, width=1000)}"
            )
        else:
            ways.append("start a run of its own: another job.dump_folder")
        unfit.hint = "\n".join([unfit.hint, *ways[:1], *(f"or {way}" for way in ways[1:])])
    return unfit


def _listed(changes: Sequence[Change]) -> str:
    return "; ".join(
        f"{change.field} was {shown(change.was)} and is now {shown(change.now)}" for change in changes
    )


def _refusal(wrong: Sequence[Change], step: int) -> CheckpointError:
    names = toml_value(list(dict.fromkeys(_named(change.field) for change in wrong)), width=1000)
    ways = [
        "set it back" if len(wrong) == 1 else "set them back",
        f"where it is intended: [checkpoint] accept_changes = {names}",
    ]
    if any(change.field == "optimizer.name" for change in wrong):
        ways.append('or reset its state: [checkpoint] exclude_from_loading = ["optimizer"]')
    error = CheckpointError(f"step {step} is of another run: {_listed(wrong)}", hint="\n".join(ways))
    error.everywhere = True
    return error


def _named(field: str) -> str:
    return field.removesuffix(".content")
