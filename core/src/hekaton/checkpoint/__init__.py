"""Checkpoints: steps on disk that are whole or do not exist, and that any layout can resume from."""

from hekaton.checkpoint.manager import CheckpointManager, Loaded

__all__ = ["CheckpointManager", "Loaded"]
