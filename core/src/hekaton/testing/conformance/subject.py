"""The contribution that a promise is checked for, and a run that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hekaton.contributions import (
    Component,
    ContextParallel,
    Contribution,
    Converter,
    Dataset,
    Encoder,
    HFAdapter,
    Logger,
    LRSchedule,
    Model,
    Objective,
    Optimizer,
    Order,
    RowMaker,
    Tokenizer,
)

if TYPE_CHECKING:
    from hekaton.config import Loaded
    from hekaton.spec import TrainSpec

SMALL_MODEL = "hekaton.testing.small_decoder"

_SELECTED_BY = {
    Dataset: "--training.dataset",
    Tokenizer: "--model.tokenizer",
    Order: "--training.order",
    RowMaker: "--training.packing",
    Converter: "--model.converters",
    ContextParallel: "--parallelism.context_parallel_strategy",
    Objective: "--training.objective",
    Optimizer: "--optimizer.name",
    LRSchedule: "--lr_scheduler.name",
    Logger: "--metrics.loggers",
}
"""Kind -> the flag by which a run selects one."""


@dataclass(frozen=True)
class CheckedContribution:
    """A record of a plugin, or the plugin as a whole.

    :param module: of the plugin.
    :param record: ``None`` for the plugin as a whole.
    :param records: everything that the plugin contributes.
    :param arguments: those of ``hekaton train`` that the test gives; empty for a run of the kit's own.
    :param tolerance: the relative difference of numbers that the test allows; ``None`` for the kit's.
    """

    module: str
    record: Contribution | None
    records: Sequence[Contribution]
    arguments: Sequence[str]
    tolerance: float | None = None

    @cached_property
    def run(self) -> list[str]:
        """Arguments of a small run that uses it."""
        return [*self.base, *self._selection]

    @cached_property
    def base(self) -> list[str]:
        """The run without what selects it: that of the test, or one with the kit's model, in small."""
        flags = [*self.arguments]
        if not [word for word in flags if word.endswith(".toml") or word == "--model.name"]:
            models = [one for one in self.records if isinstance(one, Model)]
            if models:
                name, flavor = models[0].name, smallest_flavor(models[0].spec.load())
            else:
                name, flavor = "small_decoder", "tiny"
                if "--plugins.load" not in flags:
                    flags += ["--plugins.load", SMALL_MODEL]
            chosen = ["--model.name", name, "--model.flavor", flavor, "--model.tokenizer", "byte"]
            # What the test gives counts more.
            flags = [*chosen, "--training.dataset", "python_stdlib", *flags]
        if "--training.seq_len" not in flags:
            flags += ["--training.seq_len", "32"]
        return flags

    @cached_property
    def _selection(self) -> list[str]:
        record = self.record
        if isinstance(record, Model | HFAdapter):
            spec = self.spec
            named = _value(self.arguments, "--model.flavor")
            return ["--model.name", record.name, "--model.flavor", named or smallest_flavor(spec)]
        if isinstance(record, Encoder):
            datasets = [
                one.name for one in self.records if isinstance(one, Dataset) and one.encoder == record.name
            ]
            return ["--training.dataset", datasets[0]] if datasets else []
        flag = _SELECTED_BY.get(type(record)) if record is not None else None
        return [flag, record.name] if flag is not None and record is not None else []

    @cached_property
    def loaded(self) -> Loaded:
        """The configuration of :attr:`run`."""
        return loaded(self.run)

    @cached_property
    def spec(self) -> TrainSpec:
        """The model, of the record or of the run."""
        name = self.record.name if isinstance(self.record, Model | HFAdapter) else ""
        configured = self.loaded if not name else loaded(self.base)
        spec: TrainSpec = configured.plugins.get(Model, name or configured.config.model.name).spec.load()
        return spec

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of the flavor that the run replaces."""
        return dict(self.loaded.config.model.overrides)

    @property
    def spec_of_run(self) -> TrainSpec:
        """The model with these fields replaced in the flavor of the run."""
        from hekaton.testing.model_layouts import with_overrides

        return with_overrides(self.spec, self.flavor, self.overrides)

    @property
    def flavor(self) -> str:
        """That of the run."""
        flavor: str = self.loaded.config.model.flavor
        return flavor

    @property
    def load(self) -> list[str]:
        """Plugins of the run that are not installed."""
        return list(self.loaded.config.plugins.load)

    def build(self, kind: type[Component], name: str, *arguments: Any) -> Any:
        """A component of the run, with its section."""
        from hekaton.components import build_component

        return build_component(self.loaded.config, self.loaded.plugins, kind, name, *arguments)

    @property
    def section(self) -> Any:
        """The section of the record, ``None`` where it has none."""
        from hekaton.components import section_of

        assert isinstance(self.record, Component)
        return section_of(self.loaded.config, self.loaded.plugins, self.record, {})


def loaded(arguments: Sequence[str]) -> Loaded:
    """The configuration of ``hekaton train ARGUMENTS``."""
    from hekaton.config import load
    from hekaton.config.flags import split_files

    return load(*split_files(arguments))


def smallest_flavor(spec: TrainSpec) -> str:
    """The flavor with the fewest parameters."""
    import torch

    sizes = {}
    for name, config in spec.flavors.items():
        with torch.device("meta"):
            sizes[name] = sum(one.numel() for one in spec.model(config).parameters())
    return min(sizes, key=lambda name: sizes[name])


def _value(arguments: Sequence[str], flag: str) -> str:
    places = [place for place, word in enumerate(arguments) if word == flag]
    return arguments[places[-1] + 1] if places else ""
