"""How another process finds a specification that a test has."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from hekaton.spec import TrainSpec


def place_of(spec: TrainSpec) -> tuple[str, str]:
    """The module that has the specification, and its name there."""
    for name, module in sorted(sys.modules.items(), key=lambda item: item[0].startswith("__")):
        for attribute, value in list(vars(module).items()):
            if value is spec:
                return name, attribute
    raise AssertionError(
        f"{spec.name}: layouts run in other processes, which cannot find this TrainSpec: give it a name in a "
        "module, or call check_model(..., layouts=False)"
    )


def imported(module: str, source: str | None) -> Any:
    """The module of that name, or the file ``source`` where no such module can be imported."""
    try:
        return importlib.import_module(module)
    except ImportError:
        if source is None:
            raise
    spec = importlib.util.spec_from_file_location("model_to_check", source)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[loaded.__name__] = loaded
    spec.loader.exec_module(loaded)
    return loaded
