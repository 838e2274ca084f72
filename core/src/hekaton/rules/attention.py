"""Rules of attention backends: what they can compute, where, and under which context parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hekaton.contributions import ContextParallel
from hekaton.errors import HekatonError, choices_hint
from hekaton.parallel.context import AttentionBackend
from hekaton.parallel.plan import matching
from hekaton.rules.run import Run

FIELD = "model.attention_backend"


def backend_can_attend(run: Run) -> Iterator[HekatonError]:
    """The backend that is named can compute what every inner attention requires, in this run."""
    name = run.config.model.attention_backend
    if name is None or isinstance(run.meta, HekatonError):
        return
    who = f"{run.config.model.name} {run.config.model.flavor}"
    layers = list(matching(run.meta.model, run.meta.plan.context))
    if not layers:
        yield run.violation(f"{FIELD} = '{name}', and the plan of {who} names no inner attention", FIELD)
    for path, inner in layers:
        offered: Mapping[str, AttentionBackend] = getattr(inner, "backends", {})
        if name not in offered:
            hint = choices_hint(name, offered) if offered else f"leave {FIELD} out"
            yield run.violation(
                f"{FIELD} = '{name}': '{path}' of {who} ({type(inner).__name__}) offers no such backend",
                FIELD,
                hint=hint,
            )
            return
        reasons = _reasons(run, inner, offered[name])
        if reasons:
            others = [one for one, backend in offered.items() if not _reasons(run, inner, backend)]
            yield run.violation(
                f"{FIELD} = '{name}' cannot compute '{path}' of {who}: {'; '.join(reasons)}",
                FIELD,
                hint=f"choose {' or '.join(map(repr, others))}, or leave it out"
                if others
                else "leave it out",
            )
            return


def _reasons(run: Run, inner: Any, backend: AttentionBackend) -> list[str]:
    """Why this backend cannot compute that attention in this run; empty where it can."""
    config = run.config
    reasons = []
    if backend.devices and run.device_type not in backend.devices:
        reasons.append(f"it is for {' and '.join(backend.devices)}, and the run is on {run.device_type}")
    elif run.here and (missing := backend.missing()):
        reasons.append(f"it needs {missing}")
    computed_in = config.training.mixed_precision_param
    if backend.dtypes and computed_in not in backend.dtypes:
        reasons.append(f"it computes in {' or '.join(backend.dtypes)}, not in {computed_in}")
    lacks = [what for what in getattr(inner, "requires", ()) if what not in backend.supports]
    if lacks:
        reasons.append(f"it does not support {', '.join(lacks)}")
    if config.parallelism.context_parallel_degree > 1:
        strategies = run.plugins.all(ContextParallel)
        strategy = config.context_parallel_strategy()
        requires = strategies[strategy].record.requires if strategy in strategies else ()
        if requires is None:
            reasons.append(f"the context-parallel strategy '{strategy}' computes attention itself")
        elif any(what not in backend.supports for what in requires):
            reasons.append(f"it does not compute the parts that '{strategy}' gives each rank")
    return reasons
