"""The identity of a run as its checkpoints keep it, and what changed of it since one was saved."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hekaton.config import as_dict
from hekaton.config.base import AtResumeMeaning, default_of, dotted, walk
from hekaton.contributions import IdentitySubject
from hekaton.errors import ConfigError, choices_hint
from hekaton.identity import code
from hekaton.identity.built import contributed_values, data_values
from hekaton.identity.history import Change
from hekaton.identity.imported import imported_source
from hekaton.identity.subjects import THREADS, device_values, processor_values
from hekaton.identity.values import (
    config_meanings,
    config_values,
    meaning_of,
    model_meanings,
    model_values,
    plain,
)
from hekaton.identity.variables import settings_of_torch

if TYPE_CHECKING:
    from hekaton.assembly import Assembled
    from hekaton.data import Documents

TOKENIZER = "model.tokenizer.content"
"""Named below the field, so that accepting a change of the field accepts it."""
IMPORTED = "imported code of "
"""Begins the names of what plugins and user code have imported from elsewhere."""
OF_PART = {"optimizer": ("optimizer.name",), "model": ("model",), "lr_scheduler": ("lr_scheduler",)}
"""Part of the state -> the values without which a run cannot resume with it."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run is, by dotted name.

    :param config: values of its configuration, those :func:`in_effect`.
    :param others: of its model's configuration, data, code, device, and what plugins add.
    :param contributed: those that plugins add, which come and go.
    :param meanings: what a change at a resume means, by the name of a value or of a table around it; of all
        else a notice.
    :param defaults: of the configuration.
    """

    config: Mapping[str, Any]
    others: Mapping[str, Any]
    contributed: Collection[str]
    meanings: Mapping[str, AtResumeMeaning]
    defaults: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What a manifest keeps beside the configuration."""
        return dict(self.others)

    def check_accepted(self, names: Sequence[str]) -> None:
        """:raises ConfigError: for names in ``checkpoint.accept_changes`` of which no change is refused."""
        known = {*self.config, *self.others, *self.defaults}
        for name in names:
            if not any(one == name or one.startswith(f"{name}.") for one in known):
                raise ConfigError(
                    f"checkpoint.accept_changes names '{name}', which is no value of this run",
                    hint=choices_hint(name, [one for one in known if self._meaning(one) == "refusal"]),
                )

    def changes_since(
        self, describe: Mapping[str, Any], *, step: int, not_loaded: Collection[str] = ()
    ) -> tuple[list[Change], list[Change]]:
        """What changed since a checkpoint, less what means nothing.

        :param describe: as the manifest has it.
        :param not_loaded: parts of the state that are reset.
        :returns: changes that are a notice, and those that are refused.
        """
        reset = {name for part in not_loaded for name in OF_PART.get(part, ())}
        notices: list[Change] = []
        refused: list[Change] = []
        for name, was, now in self._differences(describe):
            meaning = self._meaning(name)
            if meaning == "nothing":
                continue
            change = Change(step=step, field=name, was=was, now=now)
            is_reset = any(name == one or name.startswith(f"{one}.") for one in reset)
            (refused if meaning == "refusal" and not is_reset else notices).append(change)
        return notices, refused

    def all_changes_since(self, describe: Mapping[str, Any]) -> list[Change]:
        """What differs of another run, less what means nothing."""
        notices, refused = self.changes_since(describe, step=0)
        return [*refused, *notices]

    def of_weights(self, describe: Mapping[str, Any]) -> list[Change]:
        """What differs, of another run's weights, in what makes them mean the same: the model's mathematics
        and the tokenizer."""
        _, refused = self.changes_since(describe, step=0)
        return [change for change in refused if change.field.startswith("model.")]

    def _meaning(self, name: str) -> AtResumeMeaning:
        return meaning_of(name, self.meanings)

    def _differences(self, describe: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        config = _table(describe, "config")
        before = config_values(config)
        if "training" in config:
            before = in_effect(before, _table(describe, "layout"))
            # What is not set is not written, and neither are fields that came later.
            unset = [name for name, default in self.defaults.items() if default is None]
            free = [name for name in self.config if name not in self.defaults]  # of tables with free keys
            before = {**dict.fromkeys([*unset, *free]), **before}
        # A conversion writes the model's name and flavor alone.
        for name, was in before.items():
            now = self.config.get(name, self.defaults.get(name))
            if was != now:
                yield name, was, now
        kept = _table(describe, "identity")
        new = [name for name in self.contributed if kept and name not in kept]
        for name, was in {**kept, **dict.fromkeys(new)}.items():
            # A model's field that is gone is a matter of its code, and so are imports.
            if name not in self.others and name.startswith(("model.", IMPORTED)):
                continue
            now = self.others.get(name)
            if was != now:
                yield name, was, now


def in_effect(config: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a configuration, with what stands for others replaced by these: the length of the schedule,
    which is that of the run where it is not set, and the rows of a step, which follow from the layout.

    :param layout: the degrees of the mesh.
    """
    values = dict(config)
    if values.get("lr_scheduler.total_steps") is None:
        values["lr_scheduler.total_steps"] = values.get("training.steps")
    rows = values.get("training.local_batch_size")
    degrees = [layout.get(name, 1) for name in ("dp_replicate", "dp_shard")]
    known = all(isinstance(one, int) for one in (rows, *degrees))
    if known and values.get("training.global_batch_size") == -1:
        values["training.global_batch_size"] = rows * degrees[0] * degrees[1]
    return values


def identity_of(assembled: Assembled, documents: Documents, validation: Mapping[str, Documents]) -> Identity:
    """The identity of a run on this process; it is the same on all."""
    config, plugins = assembled.config, assembled.plugins
    values = in_effect(config_values(as_dict(config)), asdict(assembled.dims))
    model = model_values(assembled.meta.config)
    defaults = {dotted(path): plain(default_of(field)) for path, field, _ in walk(type(config))}
    data = data_values(assembled, documents, validation)
    versions = {f"version of {name}": version for name, version in code.versions(plugins).items()}
    source = {f"code of {name}": digest for name, digest in code.by_package(code.source(plugins)).items()}
    own = code.by_package(imported_source(plugins))
    machine = device_values(assembled.process.device) | processor_values(assembled.process.device)
    machine.pop(THREADS, None)  # they follow from the layout
    contributed = contributed_values(config, plugins)
    subjects = plugins.all(IdentitySubject)
    return Identity(
        config=values,
        others={
            **{name: value for name, value in model.items() if name not in values},
            TOKENIZER: data.pop("tokenizer"),
            **data,
            **versions,
            **source,
            **{f"{IMPORTED}{name}": digest for name, digest in own.items()},
            **machine,
            **settings_of_torch(),
            **contributed,
        },
        contributed=contributed,
        meanings={
            **model_meanings(assembled.meta.config),
            **config_meanings(type(config)),
            **{name: one.record.at_resume for name, one in subjects.items()},
        },
        defaults=defaults,
    )


def _table(kept: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = kept.get(name)
    return found if isinstance(found, Mapping) else {}
