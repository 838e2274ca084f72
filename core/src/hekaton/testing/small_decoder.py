"""A plugin with a small model, for runs and checks of plugins that contribute none:
``[plugins] load = ["hekaton.testing.small_decoder"]``."""

from __future__ import annotations

from typing import Any

from hekaton.contributions import Model, Ref, hookimpl

HEKATON_API = ">=1,<2"
NAME = "small_decoder"


@hookimpl
def hekaton_models() -> list[Model]:
    return [Model(NAME, spec=Ref(f"{__name__}:train_spec"), summary="the decoder of hekaton new")]


def __getattr__(name: str) -> Any:
    """``train_spec``, of a module that imports torch."""
    if name != "train_spec":
        raise AttributeError(name)
    from dataclasses import replace

    from hekaton.scaffold.templates.model import train_spec

    spec = globals()["train_spec"] = replace(train_spec, name=NAME, configure=None)
    return spec
