"""The trained parameters of a run: their roles, and the groups that an optimizer treats alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from hekaton.errors import ConfigError, choices_hint

if TYPE_CHECKING:
    from hekaton.config.sections import OptimizerSection

Role = Literal["embedding", "output", "norm", "bias", "matrix", "expert"]

REST = "rest"
"""Name of the group of parameters that no entry matches."""


@dataclass(frozen=True, kw_only=True)
class NamedParameter:
    """A trained parameter.

    :param name: its name in the whole model; of a tied one the first.
    :param parameter: this rank's part of it, a DTensor where it is sharded.
    :param role: ``embedding``, ``output`` (logits), ``norm``, ``bias`` (whatever else has one dim),
        ``matrix`` (two dims) or ``expert`` (more).
    """

    name: str
    parameter: nn.Parameter
    role: Role


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters of one model part that an optimizer treats alike.

    :param name: the entry's pattern, or ``rest``.
    :param lr: learning rate before the schedule's factor.
    """

    name: str
    lr: float
    weight_decay: float
    parameters: Sequence[NamedParameter]

    def as_torch(self, parameters: Sequence[NamedParameter] | None = None) -> dict[str, Any]:
        """The group as :class:`torch.optim.Optimizer` takes it.

        :param parameters: some of the group's; all by default.
        """
        chosen = self.parameters if parameters is None else parameters
        return {
            "params": [one.parameter for one in chosen],
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "name": self.name,
        }


def roles(model: nn.Module, *, vocab_size: int | None) -> dict[str, Role]:
    """The role of every parameter of the whole model.

    :param vocab_size: a linear layer with as many outputs gives the logits.
    """
    owners = dict(model.named_modules())
    found: dict[str, Role] = {}
    for name, parameter in model.named_parameters():
        owner_name, _, attribute = name.rpartition(".")
        owner = owners[owner_name]
        if isinstance(owner, nn.Embedding):
            found[name] = "embedding"
        elif "norm" in type(owner).__name__.lower():
            found[name] = "norm"
        elif attribute == "bias" or parameter.dim() < 2:
            found[name] = "bias"
        elif parameter.dim() > 2:
            found[name] = "expert"
        elif vocab_size is not None and parameter.shape[0] == vocab_size:
            found[name] = "output"
        else:
            found[name] = "matrix"
    return found


def _without_numbers(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def trained_names(model: nn.Module) -> list[str]:
    """The names of the parameters of the whole model that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def group_names(names: Sequence[str], settings: OptimizerSection, *, what: str) -> dict[str, str]:
    """Parameter -> the pattern of the first entry of ``[[optimizer.groups]]`` that matches it, or ``rest``.

    :raises ConfigError: for an entry that matches nothing, or nothing that earlier entries leave.
    """
    groups: dict[str, str] = {}
    for entry in settings.groups:
        matching = [name for name in names if fnmatchcase(name, entry.match)]
        left = [name for name in matching if name not in groups]
        if not left:
            why = (
                "earlier entries match all that it matches" if matching else f"no trained parameter of {what}"
            )
            raise ConfigError(
                f"optimizer.groups: entry '{entry.match}' matches nothing: {why}",
                hint=""
                if matching
                else choices_hint(entry.match, sorted({_without_numbers(name) for name in names})),
            )
        groups |= dict.fromkeys(left, entry.match)
    return {name: groups.get(name, REST) for name in names}


def initial_rates(settings: OptimizerSection) -> dict[str, float]:
    """Group -> its learning rate before the schedule's factor."""
    return {REST: settings.lr, **{entry.match: settings.lr * entry.lr_factor for entry in settings.groups}}


def parameter_groups(
    part: nn.Module, names: Mapping[str, str], model_roles: Mapping[str, Role], settings: OptimizerSection
) -> list[ParameterGroup]:
    """The groups of one model part, in the order of the entries, those that have parameters; ``rest`` first.
    One whose parameters lie on two meshes, as experts do, is two of the same name.

    :param names: :func:`group_names` of the whole model.
    """
    entries = {entry.match: entry for entry in settings.groups}
    rates = initial_rates(settings)
    members: dict[str, list[NamedParameter]] = {name: [] for name in rates}
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            members[names[name]].append(
                NamedParameter(name=name, parameter=parameter, role=model_roles[name])
            )
    # torch's optimizers update the parameters of a group together, which DTensors of two meshes cannot be.
    members_of: dict[tuple[str, Any], list[NamedParameter]] = {}
    for name, parameters in members.items():
        for one in parameters:
            mesh = getattr(one.parameter, "device_mesh", None)
            members_of.setdefault((name, mesh), []).append(one)
    decays = {name: entry.weight_decay for name, entry in entries.items() if entry.weight_decay is not None}
    return [
        ParameterGroup(
            name=name,
            lr=rates[name],
            weight_decay=decays.get(name, settings.weight_decay),
            parameters=parameters,
        )
        for (name, _), parameters in members_of.items()
    ]
