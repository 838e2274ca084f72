"""Rules across sections, checked before anything is built; one function each, all violations reported."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

from hekaton.config import Loaded
from hekaton.contributions import Check
from hekaton.errors import ConfigErrors, HekatonError, PluginError
from hekaton.plugins import Contributed
from hekaton.rules import (
    attention,
    checkpoint,
    compilation,
    data,
    effects,
    experts,
    external_weights,
    fault,
    layout,
    model,
    processes,
    sizes,
)
from hekaton.rules.run import Run

Rule: TypeAlias = Callable[[Run], Iterator[HekatonError | str]]
"""Yields violations, and as plain strings notices: values that have no effect here, or less than they say."""


def check(loaded: Loaded, *, world_size: int | None, device_type: str, here: bool = True) -> tuple[str, ...]:
    """Check what single sections cannot.

    :param world_size: number of processes; ``None`` leaves out what depends on it.
    :param device_type: ``cpu`` or ``cuda``.
    :param here: whether the run is to start on this machine, and not only to be looked at: its tokenizer must
        be there and fit, and one process must have memory for the model.
    :returns: notices, one line each.
    :raises ConfigErrors: with every violation.
    """
    run = Run(loaded.config, loaded.plugins, loaded.origins, world_size, device_type, here)
    problems: list[HekatonError] = []
    notices = []
    said = set()
    contributed: list[Rule] = [
        partial(_contributed, name, one) for name, one in loaded.plugins.all(Check).items()
    ]
    for rule in (*RULES, *contributed):
        for found in rule(run):
            if isinstance(found, str):
                notices.append(found)
            elif found.message not in said:  # several rules may need a model that there is not
                said.add(found.message)
                problems.append(found)
    if problems:
        raise ConfigErrors(problems)
    return tuple(notices)


def _contributed(name: str, check: Contributed[Check], run: Run) -> Iterator[HekatonError | str]:
    """What the rule of a plugin yields.

    :raises PluginError: when that is neither violations nor notices, or the rule fails: it is asked in every
        run, also in those that its plugin has no part in.
    """
    rule = f"check '{name}' of {check.plugin}"
    try:
        found = check.record.rule.function()(run)
        listed = list(found) if isinstance(found, Iterable) else None
    except HekatonError:
        raise
    except Exception as e:
        frames = traceback.extract_tb(e.__traceback__)
        its = next((frame for frame in frames if frame.filename != __file__), frames[-1])
        raise PluginError(
            f"{rule} failed: {type(e).__name__}: {e}",
            origin=f"{its.filename}, line {its.lineno}",
            hint=f"leave the plugin out: HEKATON_DISABLE={check.plugin.name}",
        ) from e
    if listed is None:
        raise PluginError(f"{rule} returned {type(found).__name__}", hint="write the rule as a generator")
    for one in listed:
        if not isinstance(one, HekatonError | str):
            raise PluginError(
                f"{rule} yielded {type(one).__name__}",
                hint="yield run.violation(...), or a string for a notice",
            )
        yield one


RULES: tuple[Rule, ...] = (
    processes.degrees_fit,
    model.model_accepts,
    model.optimizer_groups_match,
    model.objective_takes_the_model,
    model.second_token_is_trained,
    layout.model_divides,
    layout.sequence_divides,
    layout.microbatches_fit,
    layout.split_backward_keeps_parameters,
    layout.layout_is_said_once,
    layout.plan_can_be_carried_out,
    attention.backend_can_attend,
    experts.experts_are_there,
    experts.experts_can_be_dealt_out,
    experts.sequence_divides_among_experts,
    sizes.batch_is_in_bounds,
    sizes.batches_fit_memory,
    sizes.weight_decay_shrinks,
    sizes.tokenizer_fits,
    sizes.model_fits_memory,
    data.datasets_can_be_read,
    data.rows_are_made_of_what_datasets_give,
    data.mixture_holds_together,
    data.validation_sets_hold_together,
    processes.batch_is_divisible,
    processes.workers_have_rows,
    effects.schedule_fits,
    effects.profile_fits,
    compilation.backend_exists,
    compilation.operators_can_be_kept,
    compilation.memory_budget_is_compiled,
    compilation.async_tensor_parallel_can_run,
    checkpoint.seed_is_the_start,
    checkpoint.something_is_loaded,
    checkpoint.accepted_changes_are_of_a_value,
    checkpoint.something_is_saved,
    checkpoint.folders_can_be_reached,
    checkpoint.hugging_face_knows_the_model,
    external_weights.initial_weights_are_of_the_model,
    fault.replay_repeats,
    fault.rollback_has_checkpoints,
    fault.faults_are_looked_for,
    effects.precision_is_used,
    effects.validation_is_other_data,
    effects.loggers_are_there,
    effects.device_matters,
)
