"""A model and its counterpart in another layout: which they are, and what fits between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hekaton.config.validation import described
from hekaton.contributions import CheckpointFormat, HFAdapter, Model, Ref
from hekaton.draft import Draft, Merge
from hekaton.errors import CheckpointError, ConfigError
from hekaton.meta import on_meta
from hekaton.overrides import mistyped, overridden, override
from hekaton.plugins import Plugins
from hekaton.spec import TrainSpec, load_spec
from hekaton.weights.facts import ModelFacts, check_facts, facts_of
from hekaton.weights.format import Unmerged, WeightFormat, Weights
from hekaton.weights.lazy import LazyTensor, cast
from hekaton.weights.merge import merged, unmerged
from hekaton.weights.table import WeightTable

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """A model in one flavor, and its counterpart elsewhere.

    :param draft: the model after the run's converters, where it has some.
    """

    spec: TrainSpec
    flavor: str
    config: Any
    adapter: HFAdapter
    draft: Draft | None = None

    def __str__(self) -> str:
        return f"{self.spec.name} {self.flavor}".rstrip()

    @property
    def table(self) -> WeightTable:
        table: WeightTable = self.adapter.table.function()(self.config)
        if self.draft is None or not self.draft.weight_entries:
            return table
        return dataclasses.replace(table, entries=[*table.entries, *self.draft.weight_entries])

    @property
    def merges(self) -> Sequence[Merge]:
        """How tensors of a converted model become those of the model as it was."""
        return self.draft.merges if self.draft is not None else ()

    def on_meta(self) -> nn.Module:
        """The model, in no memory."""
        if self.draft is not None:
            return self.draft.model
        return on_meta(self.spec, self.config)

    def check_source(
        self,
        weights: Weights,
        *,
        overridden: Collection[str] = (),
        leave_out: Collection[str] = (),
        adapters: Sequence[HFAdapter] = (),
        what: str,
    ) -> None:
        """Whether a folder is of this model, by its configuration and the names of its tensors.

        :param overridden: fields of the configuration that may differ.
        :param leave_out: as for :meth:`from_hf`; ``adapters``: as for :func:`read_config`.
        :raises CheckpointError: when it is of another model, or holds one more.
        """
        there = read_config(self.adapter, weights.config, adapters=adapters, what=what)
        differences = differing(there, self.config, besides=overridden)
        if differences:
            raise CheckpointError(f"{what} is not {self}", hint="\n".join(differences))
        self.table.own_names(weights.tensors, leave_out=leave_out, what=what)

    def from_hf(
        self, weights: Weights, *, leave_out: Collection[str] = (), what: str
    ) -> dict[str, LazyTensor]:
        """The model's tensors, made from those of a folder.

        :param leave_out: other models in the folder that are not read; see :class:`WeightTable`.
        :raises CheckpointError: for tensors without an entry, entries without a tensor, and tensors that the
            folder lists and does not hold; one that the model does without may be listed.
        """
        table = self.table
        own = table.own_names(weights.tensors, leave_out=leave_out, what=what)
        not_held = table.own_names(weights.absent, leave_out=leave_out, what=what)
        absent = sorted(there for name, there in not_held.items() if name not in table.optional)
        if absent:
            more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
            raise CheckpointError(
                f"{what} lists tensors that none of its files holds",
                hint=f"not in the files: {', '.join(absent[:_SHOWN])}{more}",
            )
        theirs = {name: weights.tensors[there] for name, there in own.items()}
        return unmerged(self.merges, table.from_hf(theirs, what=what))

    def facts_of(self, weights: Weights) -> ModelFacts:
        """What a folder says beside its weights and the model's own configuration.

        :raises CheckpointError: for positions and ids that are none.
        """
        content = _with_defaults(self.adapter, weights.config)
        check_facts(content, weights.generation)
        return facts_of(content, weights.generation)

    def check_shapes(
        self, tensors: Mapping[str, LazyTensor], wanted: Mapping[str, torch.Tensor], *, what: str
    ) -> None:
        """:raises CheckpointError: listing the tensors that are of another shape than those of the model."""
        lines = [
            f"{name} is {tensors[name].shape} there, {tuple(tensor.shape)} in {self}"
            for name, tensor in wanted.items()
            if name in tensors and tensors[name].shape != tuple(tensor.shape)
        ]
        if lines:
            more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            raise CheckpointError(f"{what} is not {self}", hint="\n".join([*lines[:_SHOWN], *more]))


def adapter_of(plugins: Plugins, model: str) -> HFAdapter:
    """:raises UnknownName: for a model without an adapter."""
    plugins.get(Model, model)
    return plugins.get(HFAdapter, model)


def build_format(plugins: Plugins, name: str) -> WeightFormat:
    """:raises UnknownName: when nobody contributes it."""
    record = plugins.get(CheckpointFormat, name)
    built: WeightFormat = record.build.function()(None)
    return built


def export(
    found: Counterpart,
    ours: Mapping[str, LazyTensor],
    *,
    dtype: str | None,
    facts: ModelFacts,
    what: str,
    base: str | None = None,
) -> Weights:
    """The model's tensors as its counterpart's, with the configuration of that.

    :param dtype: name of torch's precision for floating-point tensors; ``None`` leaves theirs.
    :param base: see :class:`hekaton.weights.format.Unmerged`.
    """
    table = found.table
    tensors = table.to_hf(merged(found.merges, ours), what=what)
    if dtype is not None:
        precision: torch.dtype = getattr(torch, dtype)
        tensors = {name: cast(tensor, precision, what=name) for name, tensor in tensors.items()}
        ours = {name: cast(tensor, precision, what=name) for name, tensor in ours.items()}
    config = found.adapter.write_config.function()(found.config)
    if "_class_name" not in config:  # diffusers' word for it
        config = {"architectures": list(found.adapter.architectures[:1]), **config}
    unmerged = Unmerged(merges=found.merges, table=table, tensors=ours, base=base)
    return Weights(config=config, tensors=tensors, facts=facts, unmerged=unmerged)


def base_of(config: Mapping[str, Any]) -> str | None:
    """The folder in the layout of Hugging Face that a run started from.

    :param config: its configuration, as a manifest has it.
    """
    checkpoint = config.get("checkpoint", {})
    path: str | None = checkpoint.get("initial_load_path") if checkpoint.get("initial_load_in_hf") else None
    return path


def identify(
    plugins: Plugins,
    content: Mapping[str, Any],
    *,
    model: str | None,
    flavor: str | None,
    overrides: Mapping[str, Any] | None = None,
    what: str,
) -> Counterpart:
    """Which model and flavor a ``config.json`` describes.

    :param overrides: fields of the flavor to replace; in them the ``config.json`` may differ.
    :raises CheckpointError: when it is not the one that was named, saying in what they differ, or when it
        fits none.
    """
    found = counterpart_of(plugins, content, model=model, what=what)
    spec, overrides = found.spec, overrides or {}
    there = override(found.config, overrides, spec.name)
    if flavor is not None:
        by_flavor = {flavor: override(spec.flavor(flavor), overrides, spec.name)}
    else:
        of_flavors = {name: overridden(spec.flavor(name), overrides) for name in spec.flavors}
        by_flavor = {name: config for name, (config, wrong) in of_flavors.items() if not wrong}
    return dataclasses.replace(found, config=there, flavor=_flavor(spec, there, flavor, by_flavor, what=what))


def counterpart_of(
    plugins: Plugins, content: Mapping[str, Any], *, model: str | None, what: str
) -> Counterpart:
    """The model that a ``config.json`` describes, whether or not it is one of the model's flavors.

    :raises CheckpointError: when it is not the one that was named, or of no model that is installed.
    """
    adapter = _only_reader(plugins, content, what=what) if model is None else adapter_of(plugins, model)
    spec = load_spec(plugins.get(Model, adapter.name))
    config = read_config(adapter, content, adapters=adapters_of(plugins), what=what)
    return Counterpart(spec=spec, flavor="", config=config, adapter=adapter)


def _only_reader(plugins: Plugins, content: Mapping[str, Any], *, what: str) -> HFAdapter:
    architectures = _architectures(content, what=what)
    adapters = adapters_of(plugins)
    fitting = _readers(adapters, content, architectures)
    if len(fitting) != 1:
        said = (
            f"its architectures are {', '.join(architectures)}"
            if architectures
            else "it names no architecture"
        )
        known = "; ".join(f"{one.name} ({', '.join(one.architectures)})" for one in fitting or adapters)
        raise CheckpointError(
            f"{what}: cannot tell which model it is of: {said}", hint=f"set --model_name, of {known}"
        )
    return fitting[0]


def read_config(
    adapter: HFAdapter, content: Mapping[str, Any], *, adapters: Sequence[HFAdapter] = (), what: str
) -> Any:
    """The configuration of the model that a ``config.json`` describes.

    :param adapters: those that are installed; an error names the one that reads this file.
    :raises CheckpointError: when it is of another architecture, asks for what the model cannot do, or is no
        such file.
    """
    architectures = _architectures(content, what=what)
    kind = ", ".join(architectures) or content.get("model_type")
    others = [one.name for one in _readers(adapters, content, architectures)]
    is_read = (
        set(architectures) & set(adapter.architectures)
        if architectures
        else kind is None or kind in adapter.model_types or not others
    )
    if not is_read:
        hint = f"{adapter.name} reads {', '.join(adapter.architectures)}"
        readers = " or ".join(f'model.name = "{other}" (--model_name {other})' for other in others)
        raise CheckpointError(
            f"{what} is a {kind}, not a {adapter.name}", hint=f"choose {readers}\n{hint}" if others else hint
        )
    try:
        content = _with_defaults(adapter, content)
        check_facts(content)
        config = adapter.read_config.function()(content)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{what}: config.json: {error.message}", hint=error.hint) from error
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{what}: config.json is not that of a {adapter.name}: {reason}") from error
    wrong = [f"{'.'.join(one.path)} {described(one.detail)}" for one in mistyped(config)]
    if wrong:
        raise CheckpointError(
            f"{what}: config.json describes what no {adapter.name} can be", hint="\n".join(wrong)
        )
    return config


def text_config(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a ``config.json`` says of the language model, which has a section of its own where there are
    several models (``text_config``); what is said of all of them is the architecture.

    :raises CheckpointError: for a section that is no JSON object.
    """
    inner = content.get("text_config")
    if inner is None:
        return content
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"text_config = {inner!r}: a JSON object was expected")
    return {**inner, **{key: content[key] for key in ("architectures", "model_type") if key in content}}


def adapters_of(plugins: Plugins) -> list[HFAdapter]:
    """Of all models that are installed."""
    return [one.record for one in plugins.all(HFAdapter).values()]


def _readers(
    adapters: Sequence[HFAdapter], content: Mapping[str, Any], architectures: Sequence[str]
) -> list[HFAdapter]:
    """The adapters that read what a ``config.json`` describes."""
    if not architectures:
        return [one for one in adapters if content.get("model_type") in one.model_types]
    return [one for one in adapters if set(architectures) & set(one.architectures)]


def _with_defaults(adapter: HFAdapter, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``config.json`` says of the language model, as transformers reads it."""
    of = adapter.defaults
    content = text_config(content)
    return {**(of.function()(content) if isinstance(of, Ref) else of), **content}


def _architectures(content: Mapping[str, Any], *, what: str) -> list[str]:
    listed = content.get("architectures", content.get("_class_name"))  # the name that diffusers has for it
    names = [] if listed is None else [listed] if isinstance(listed, str) else listed
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise CheckpointError(
            f"{what}: config.json: architectures = {listed!r}: a list of names was expected"
        )
    if not isinstance(content.get("model_type"), str | None):
        kind = content["model_type"]
        raise CheckpointError(f"{what}: config.json: model_type = {kind!r}: a name was expected")
    return names


def _flavor(spec: TrainSpec, config: Any, named: str | None, flavors: Mapping[str, Any], *, what: str) -> str:
    """The first flavor that a configuration is; any others are further names of the same.

    :param named: the one that it should be; then ``flavors`` has no others.
    :raises CheckpointError: when it is none, naming the nearest and in what that differs.
    """
    if not flavors:
        raise CheckpointError(f"{what}: no flavor of {spec.name} takes these overrides")
    by_flavor = {name: differing(config, one) for name, one in flavors.items()}
    nearest = min(by_flavor, key=lambda name: len(by_flavor[name]))
    if by_flavor[nearest]:
        said = f"{what} is not {spec.name} {nearest}"
        if named is None:
            said = f"{what} is none of the flavors of {spec.name}; the nearest is {nearest}:"
        raise CheckpointError(said, hint="\n".join(by_flavor[nearest]))
    return nearest


def differing(there: Any, here: Any, *, besides: Collection[str] = ()) -> list[str]:
    """The fields in which two configurations of a model differ, a line each."""
    return [
        f"{field.name} is {getattr(there, field.name)} there, {getattr(here, field.name)} here"
        for field in dataclasses.fields(here)
        if field.name not in besides and getattr(there, field.name) != getattr(here, field.name)
    ]
