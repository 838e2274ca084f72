"""hekaton: pretrain large language models on PyTorch, with every choice open to a plugin.

    import hekaton

    run = hekaton.train("run.toml", training={"steps": 100})
    trained = hekaton.load(run.folder)
    model = hekaton.build("llama3", "debugmodel", n_layers=2)
    for past in hekaton.runs("outputs"):
        print(past.folder, past.metrics[-1]["loss"])

What :func:`dir` lists is the API of this package; it is imported when it is first used, and torch with it.

Start reading at :mod:`hekaton.trainer` for the way of a run; to write a plugin, at
:mod:`hekaton.contributions`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hekaton.api.models import build as build
    from hekaton.api.models import load as load
    from hekaton.api.records import PastRun as PastRun
    from hekaton.api.records import runs as runs
    from hekaton.api.training import TrainedRun as TrainedRun
    from hekaton.api.training import train as train
    from hekaton.errors import HekatonError as HekatonError
    from hekaton.loaded_model import LoadedModel as LoadedModel

__version__ = "0.1.0"

_MODULES = {
    "HekatonError": "hekaton.errors",
    "LoadedModel": "hekaton.loaded_model",
    "PastRun": "hekaton.api.records",
    "TrainedRun": "hekaton.api.training",
    "build": "hekaton.api.models",
    "load": "hekaton.api.models",
    "runs": "hekaton.api.records",
    "train": "hekaton.api.training",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hekaton' has no attribute '{name}'")
    from hekaton.interrupts import imports_are_finished

    with imports_are_finished():
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
