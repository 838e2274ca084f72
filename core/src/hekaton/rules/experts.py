"""Rules of experts: a model that has some, and degrees that divide them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hekaton.building import expert_styles
from hekaton.contributions import Dispatcher
from hekaton.errors import HekatonError
from hekaton.parallel.experts import expert_layers, uneven_cuts
from hekaton.parallel.tensor import TensorContext
from hekaton.rules.run import Run

DEGREES = ("expert_parallel_degree", "expert_tensor_parallel_degree")
FIELDS = tuple(f"parallelism.{name}" for name in DEGREES)


def experts_are_there(run: Run) -> Iterator[HekatonError]:
    """What is set for experts is set for a model that has some."""
    if isinstance(run.meta, HekatonError) or run.meta.plan.experts:
        return
    who = f"{run.config.model.name} {run.config.model.flavor}"
    for name in DEGREES:
        degree = getattr(run.config.parallelism, name)
        if degree > 1:
            yield run.violation(
                f"parallelism.{name} = {degree}, and {who} has no experts",
                f"parallelism.{name}",
                hint=f"choose a flavor with experts, or parallelism.{name} = 1",
            )
    if run.config.debug.moe_force_load_balance:
        yield run.violation(
            f"debug.moe_force_load_balance is set, and {who} has no experts", "debug.moe_force_load_balance"
        )


def experts_can_be_dealt_out(run: Run) -> Iterator[HekatonError]:
    """The ranks of data, context and tensor parallel can be distributed to experts, and experts to them."""
    settings, meta = run.config.parallelism, run.meta
    ep, etp = (getattr(settings, name) for name in DEGREES)
    if ep * etp == 1 or isinstance(meta, HekatonError) or not meta.plan.experts:
        return
    who = f"{run.config.model.name} {run.config.model.flavor}"
    try:
        styles = expert_styles(meta, run.config, run.plugins)
        run.plugins.get(Dispatcher, run.config.expert_dispatcher())
    except HekatonError as e:
        yield e
        return
    found: dict[tuple[str, int], list[str]] = {}
    context = TensorContext(sequence_parallel=settings.sequence_parallel, loss_parallel=True)
    for name, layer in expert_layers(meta.model, meta.plan.experts):
        for cut in uneven_cuts(layer, styles[name], context, run.model_dims):
            where = re.sub(r"\.\d+(?=\.|$)", ".*", f"{name}.experts.{cut.name}")
            found.setdefault((cut.field, cut.size), []).append(where)
    for (field, size), names in found.items():
        what = f"the {size} experts" if field == DEGREES[0] else f"{size}"
        choices = [str(degree) for degree in range(1, min(size, 256) + 1) if size % degree == 0]
        yield run.violation(
            f"parallelism.{field} = {getattr(settings, field)} does not divide {what} of {who}, by which "
            f"{', '.join(dict.fromkeys(names))} are cut",
            f"parallelism.{field}",
            hint=f"choose one of {', '.join(choices)}",
        )
    if run.data_parallel_degree is None:
        return
    shard = run.data_parallel_degree // settings.data_parallel_replicate_degree
    ranks = shard * settings.context_parallel_degree * settings.tensor_parallel_degree
    if ranks % (ep * etp):
        yield run.violation(
            f"expert_parallel_degree {ep} × expert_tensor_parallel_degree {etp} = {ep * etp} does not divide "
            f"the {ranks} ranks of data_parallel_shard {shard} × context_parallel "
            f"{settings.context_parallel_degree} × tensor_parallel {settings.tensor_parallel_degree}, over "
            "which experts are distributed",
            *FIELDS,
            hint=f"choose degrees whose product divides {ranks}",
        )


def sequence_divides_among_experts(run: Run) -> Iterator[HekatonError]:
    """Without sequence parallel too, each rank of tensor parallel brings part of a sequence to experts."""
    settings, meta = run.config.parallelism, run.meta
    context, tensor = settings.context_parallel_degree, settings.tensor_parallel_degree
    length = run.config.training.seq_len
    if tensor == 1 or settings.sequence_parallel or isinstance(meta, HekatonError) or not meta.plan.experts:
        return
    if length % context == 0 and length // context % tensor:
        yield run.violation(
            f"training.seq_len = {length}: its part of {length // context} tokens is not divisible by "
            f"tensor_parallel_degree = {tensor}, among whose ranks layers of experts divide it",
            "training.seq_len",
            "parallelism.tensor_parallel_degree",
            hint=f"choose a multiple of {context * tensor}",
        )
