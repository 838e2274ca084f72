"""The components of a run, built by name and compared with the contract of their kind."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch
from pydantic import ValidationError

from hekaton.contributions import (
    Component,
    ContextParallel,
    Converter,
    Dataset,
    Dispatcher,
    Encoder,
    Evaluation,
    Logger,
    LRSchedule,
    Objective,
    Optimizer,
    Order,
    ParallelStyle,
    RowMaker,
    Tokenizer,
)
from hekaton.data import DocumentEncoder, DocumentOrder, Documents, TextTokenizer
from hekaton.data.row_makers import BatchRowMaker
from hekaton.errors import ConfigError, HekatonError, PluginError, choices_hint
from hekaton.metrics import MetricLogger, RunEvaluation
from hekaton.objective import TrainingObjective
from hekaton.parallel.context import ContextStrategy
from hekaton.plugins import Plugins, kind_name
from hekaton.spec import ModelConverter

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.parameters import ParameterGroup

_PROTOCOLS: Mapping[type[Component], type] = {
    ContextParallel: ContextStrategy,
    Converter: ModelConverter,
    Dataset: Documents,
    Encoder: DocumentEncoder,
    Evaluation: RunEvaluation,
    Logger: MetricLogger,
    Objective: TrainingObjective,
    Order: DocumentOrder,
    RowMaker: BatchRowMaker,
    Tokenizer: TextTokenizer,
}
_CALLED = (Dispatcher, LRSchedule)


def build_component(
    config: JobConfig,
    plugins: Plugins,
    kind: type[Component],
    name: str,
    *arguments: Any,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """Load the component of this kind and name, and build it: with its own section first.

    :param settings: values in place of those of its section.
    :raises ConfigError: for settings that its section does not take.
    :raises UnknownName: when nobody contributes it.
    :raises PluginError: when what is built is not of its kind.
    """
    record: Any = plugins.get(kind, name)
    what = f"{kind_name(kind)} '{name}' of {plugins.all(kind)[name].plugin}"
    build, section = record.build.function(), section_of(config, plugins, record, settings or {})
    try:
        built = build(section, *arguments)
    except HekatonError:
        raise
    except Exception as e:
        if not isinstance(e, TypeError) or len(traceback.extract_tb(e.__traceback__)) > 1:
            e.add_note(f"raised where {what} was built")
            raise
        raise PluginError(
            f"{what}: {e}",
            hint=f"'{record.build.target}' builds it, of {1 + len(arguments)} arguments: "
            f"docs/contracts/{kind_name(kind).replace(' ', '-')}.md",
        ) from e
    if wrong := _wrong(kind, built):
        raise PluginError(
            f"{what}: build returned {type(built).__name__}, {wrong}",
            hint=f"'{record.build.target}' builds it",
        )
    return built


def section_of(config: JobConfig, plugins: Plugins, record: Component, settings: Mapping[str, Any]) -> Any:
    """The section that a component is built with.

    :param settings: values in place of those that the run sets.
    :raises ConfigError: for settings that it does not take.
    """
    path, name = plugins.section_of(record), record.name
    if not settings:
        return config.section(path) if path else None
    if not path:
        raise ConfigError(f"'{name}' has no settings, but {', '.join(settings)} is set")
    section = config.section(path)
    try:
        return type(section).model_validate({**section.model_dump(), **settings})
    except ValidationError as e:
        wrong = e.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        if wrong["type"] == "extra_forbidden":
            raise ConfigError(
                f"the settings of '{name}' have no field '{where}'",
                hint=choices_hint(where, type(section).model_fields),
            ) from e
        raise ConfigError(f"the settings of '{name}': {where}: {wrong['msg']}") from e


def check_shared_out(
    optimizers: Sequence[torch.optim.Optimizer], groups: Sequence[ParameterGroup], *, name: str
) -> None:
    """Check that each parameter that an optimizer was given is in one group of what it built.

    :param name: of the optimizer, for the message.
    :raises PluginError: naming a parameter that would not be trained, or would be trained twice.
    """
    given = {id(one.parameter): one.name for group in groups for one in group.parameters}
    times = dict.fromkeys(given, 0)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in times:
                raise PluginError(f"optimizer '{name}' has a parameter that it was not given")
            times[id(parameter)] += 1
    wrong = [f"'{given[key]}' is in {count} groups" for key, count in times.items() if count != 1]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise PluginError(
            f"optimizer '{name}' must have each parameter in one group: {wrong[0]}{more}",
            hint="build(section, settings, groups) returns optimizers that share out all that groups hold",
        )


def _wrong(kind: type[Component], built: Any) -> str:
    """Why an object is not what a kind of component builds, as the end of a sentence; empty if it is."""
    if kind in _CALLED:
        return "" if callable(built) else "which cannot be called"
    if kind is ParallelStyle:
        from torch.distributed.tensor.parallel import ParallelStyle as Style

        return "" if isinstance(built, Style) else "not a torch.distributed.tensor.parallel.ParallelStyle"
    if kind is Optimizer:
        every = built if isinstance(built, list | tuple) else [built]
        optimizers = bool(every) and all(isinstance(one, torch.optim.Optimizer) for one in every)
        return "" if optimizers else "not an optimizer or a list of them"
    missing = missing_members(_PROTOCOLS[kind], built) if kind in _PROTOCOLS else []
    if missing or kind not in _PROTOCOLS:
        return f"which has no {', '.join(missing)}" if missing else ""
    return wrong_value(_PROTOCOLS[kind], built) or (_wrong_mark(built) if kind is Tokenizer else "")


def _wrong_mark(tokenizer: TextTokenizer) -> str:
    for name in ("bos_id", "eos_id"):
        mark = getattr(tokenizer, name)
        if mark is not None and not 0 <= mark < tokenizer.vocab_size:
            return f"whose {name} is {mark}, and vocab_size {tokenizer.vocab_size}"
    return ""


def wrong_value(protocol: type, built: Any) -> str:
    """The first of its texts and numbers that is not what a protocol says, as the end of a sentence."""
    for name, expected in _values(protocol).items():
        value = getattr(built, name)
        if value is None and type(None) in get_args(expected):
            continue
        if str in (expected, *get_args(expected)):
            if not isinstance(value, str) or not value:
                return f"whose {name} is {value!r}, not a text"
        elif isinstance(value, bool) or not isinstance(value, Integral):
            return f"whose {name} is {value!r}, not a whole number"
        elif expected is int and value <= 0:
            return f"whose {name} is {value}, not above 0"
    return ""


def _values(protocol: type) -> dict[str, Any]:
    """The attributes and properties of a protocol that are texts or numbers, with their types."""
    hints = get_type_hints(protocol)
    for name, value in vars(protocol).items():
        if isinstance(value, property):
            hints[name] = get_type_hints(value.fget)["return"]
    plain = ({int}, {str}, {int, type(None)}, {str, type(None)})
    return {name: hint for name, hint in hints.items() if set(get_args(hint)) in plain or {hint} in plain}


def missing_members(protocol: type, built: Any) -> list[str]:
    """The methods and attributes of a protocol that an object lacks."""
    return [one for one in _members(protocol) if not hasattr(built, one)]


def _members(protocol: type) -> list[str]:
    """The methods and attributes of a protocol, by name."""
    methods = [
        name
        for name, value in vars(protocol).items()
        if (callable(value) or isinstance(value, property))
        and (not name.startswith("_") or name in ("__len__", "__call__"))
    ]
    return [*protocol.__annotations__, *methods]
