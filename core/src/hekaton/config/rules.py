"""Rules."""

from hekaton.config.loading import Loaded


def check(loaded: Loaded, *, world_size: int | None, device_type: str) -> tuple[str, ...]:
    """Check."""
    return ()
