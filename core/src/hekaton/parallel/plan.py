"""The declarative plan: patterns over module names to styles, and where blocks and pipeline stages are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from hekaton.errors import ConfigError
from hekaton.patterns import compile_pattern, resolve, with_owners


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Where a pipeline may be cut: between the children of ``layers``.

    :param first: modules that belong to the first stage, names or patterns.
    :param layers: the container whose children are distributed: a ``ModuleList``, ``ModuleDict`` or
        ``Sequential``.
    :param last: modules that belong to the last stage, names or patterns.
    """

    first: Sequence[str] = ()
    layers: str = "layers"
    last: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ParallelPlan:
    """How a model is cut, by the names of parallel styles.

    :param block: pattern of the repeated module: the unit of FSDP, activation checkpointing and compile.
    :param tensor: module pattern -> style, for tensor and sequence parallel. Once any entry is given, every
        parameter must be covered.
    :param experts: pattern of layers of experts -> style, which says how the tensors of their experts are cut
        under expert parallel and expert-tensor parallel; see :class:`hekaton.parallel.experts.ExpertLayer`.
    :param context: patterns of the modules where the sequence is split and attention must see all of it.
    :param stages: where a pipeline is cut.
    """

    block: str
    tensor: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    context: Sequence[str] = ()
    stages: Stages | None = None


def module_names(model: nn.Module) -> list[str]:
    """The name of every module, those of a module that is shared one after the other."""
    return [name for name, _ in model.named_modules(remove_duplicate=False) if name]


def matching(model: nn.Module, patterns: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose names match one of the patterns, in order; one that is shared comes once."""
    compiled = [compile_pattern(pattern) for pattern in patterns]
    seen: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) not in seen and any(pattern.fullmatch(name) for pattern in compiled):
            seen.add(id(module))
            yield name, module


def ends(model: nn.Module, plan: ParallelPlan) -> tuple[list[str], list[str]]:
    """The names of the modules that only the first stage of a pipeline has, and only the last."""
    assert plan.stages is not None
    names = module_names(model)
    first, last = (
        [name for name in names if any(compile_pattern(pattern).fullmatch(name) for pattern in patterns)]
        for patterns in (plan.stages.first, plan.stages.last)
    )
    return first, last


def blocks(model: nn.Module, plan: ParallelPlan) -> Iterator[tuple[str, nn.Module]]:
    """The plan's blocks that ``model`` (or this stage of it) has, in order."""
    return matching(model, [plan.block])


def check_plan(model: nn.Module, plan: ParallelPlan, *, what: str) -> None:
    """Check a plan against the whole model, before it is cut.

    :param what: what the plan belongs to, for messages (``"llama3"``).
    :raises ConfigError: for an entry that matches no module, two that match the same one, or a parameter that
        no entry covers.
    """
    names = module_names(model)
    units = resolve({plan.block: None}, names, what=f"plan of {what}, block")
    for name in units:
        around = next((owner for owner in with_owners(name.rpartition(".")[0]) if owner in units), None)
        if around is not None:
            raise ConfigError(
                f"plan of {what}: block '{plan.block}' matches '{around}' and, inside it, '{name}'",
                hint="name the modules that repeat, which do not contain each other",
            )
    resolve(dict.fromkeys(plan.context), names, what=f"plan of {what}, context")
    resolve(plan.experts, names, what=f"plan of {what}, experts")
    if plan.stages is not None:
        entries = [*plan.stages.first, plan.stages.layers, *plan.stages.last]
        resolve(dict.fromkeys(entries), names, what=f"plan of {what}, stages")
        if plan.stages.layers not in names:
            raise ConfigError(f"plan of {what}, stages: layers = '{plan.stages.layers}' is no module's name")
    covered = resolve(plan.tensor, names, what=f"plan of {what}, tensor")
    if not covered:
        return
    bare = [
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if not any(f"{name}.".startswith(f"{module}.") for module in covered)
    ]
    if bare:
        of_model = [name for name in bare if "." not in name]
        raise ConfigError(
            f"plan of {what}: no entry covers {', '.join(bare[:5])}"
            + (f" and {len(bare) - 5} more" if len(bare) > 5 else ""),
            hint="entries name modules, so give each parameter of the model itself a module of its own: "
            + ", ".join(of_model[:5])
            if of_model
            else "give each its style, 'replicate' where it is not cut",
        )
