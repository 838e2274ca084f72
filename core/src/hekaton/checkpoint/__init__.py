"""Checkpoints: steps on disk that are whole or do not exist, and that any layout can resume from."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hekaton.checkpoint.runs.manager import CheckpointManager, LoadedStep

__all__ = ["CheckpointManager", "LoadedStep"]


def __getattr__(name: str) -> Any:
    # Looking at steps needs no torch, and the manager does.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hekaton.checkpoint.runs import manager

    return getattr(manager, name)
