"""The plugin by which ``check_model`` puts the specification that it checks into a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hekaton.contributions import Model, Ref, hookimpl

if TYPE_CHECKING:
    from hekaton.spec import TrainSpec

HEKATON_API = ">=1,<2"

NAME = "checked_model"

train_spec: TrainSpec | None = None
"""Set by the process that runs a layout."""


@hookimpl
def hekaton_models() -> list[Model]:
    return [Model(NAME, spec=Ref(f"{__name__}:train_spec"), summary="the model that is checked")]
