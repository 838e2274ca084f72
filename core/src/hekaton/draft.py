"""A model before it is cut, and everything about it that a converter may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hekaton.errors import ConfigError, PluginError
from hekaton.init import Initializer
from hekaton.layer_choices import LayerChoice
from hekaton.parallel.plan import ParallelPlan
from hekaton.patterns import resolve

if TYPE_CHECKING:
    from hekaton.weights.table import Entry


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Tensors of a converted model that an export makes into one of the model as it was.

    :param into: the name of the tensor of the unconverted model.
    :param parts: the names of the tensors that it is made from.
    :param make: ``make(parts)`` is given their values, whole and on the CPU, and returns the merged one, of
        the shape and dtype of ``like``.
    :param like: which of ``parts`` has the shape and dtype of the result, and is what an import fills.
    """

    into: str
    parts: Sequence[str]
    make: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    like: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.like < len(self.parts):
            raise PluginError(
                f"the merge of '{self.into}' is like part {self.like}, and has {len(self.parts)} parts",
                hint="parts are numbered from 0",
            )


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a converter is given, and what it returns, changed: ``replace(draft, plan=...)``.

    :param what: the model's name, for messages.
    :param config: the model's configuration.
    :param model: the module on the meta device; it may be changed in place.
    :param plan: how the model is cut. :meth:`with_styles` replaces styles of its tensor entries.
    :param init: parameter-name pattern -> initialiser; parameters that are added need an entry.
    :param trained: patterns of the parameters that are trained; ``None`` for all that require a gradient in
        the module. Others are frozen: they get no gradient and no optimizer state.
    :param merges: how an export makes tensors of the model as it was from those of the converted one.
    :param weight_entries: of the weight table, for parameters that are added and exported by themselves.
    :param export_format: the checkpoint format in which ``checkpoint.last_save_in_hf`` writes the model.
    :param choices: converter -> the layers that it chose among, which ``hekaton config show --converters``
        prints.
    """

    what: str
    config: Any
    model: nn.Module
    plan: ParallelPlan
    init: Mapping[str, Initializer]
    trained: Sequence[str] | None = None
    merges: Sequence[Merge] = ()
    weight_entries: Sequence[Entry] = ()
    export_format: str = "hf"
    choices: Mapping[str, Sequence[LayerChoice]] = field(default_factory=dict)

    def with_styles(self, styles: Mapping[str, str]) -> Draft:
        """The draft with styles of the plan's tensor entries replaced (``{"colwise": "float8_colwise"}``)."""
        entries = {pattern: styles.get(style, style) for pattern, style in self.plan.tensor.items()}
        return replace(self, plan=replace(self.plan, tensor=entries))

    def with_entries(
        self, *, tensor: Mapping[str, str] | None = None, init: Mapping[str, Initializer] | None = None
    ) -> Draft:
        """The draft with more entries in the plan's ``tensor``, where it has any, and in the init table.

        :param tensor: module pattern -> style, for modules that are added. A parameter that is added to a
            module with a style needs none.
        :param init: parameter-name pattern -> initialiser.
        """
        plan = self.plan
        if tensor and plan.tensor:
            plan = replace(plan, tensor={**plan.tensor, **tensor})
        return replace(self, plan=plan, init={**self.init, **(init or {})})


def apply_converters(draft: Draft, converters: Mapping[str, Any]) -> Draft:
    """The draft after every converter, in order.

    :param converters: name -> what the converter's ``build`` returned.
    :raises PluginError: when one returns something else than a draft.
    """
    for name, converter in converters.items():
        changed = converter.convert(draft)
        if not isinstance(changed, Draft):
            raise PluginError(
                f"converter '{name}' returned {type(changed).__name__}, not a Draft",
                hint="convert(draft) returns the draft, changed or as it was",
            )
        draft = changed
    if draft.trained is not None:
        _freeze_all_but(draft.model, draft.trained, what=draft.what)
    return draft


def _freeze_all_but(model: nn.Module, patterns: Sequence[str], *, what: str) -> None:
    parameters = dict(model.named_parameters())
    trained = resolve(dict.fromkeys(patterns), parameters, what=f"trained parameters of {what}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    if not trained:
        raise ConfigError(f"no parameter of {what} is trained", hint="name some in the draft's 'trained'")
