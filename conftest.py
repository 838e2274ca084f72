"""For the tests of all packages."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked ``cuda`` that need more devices than there are."""
    if not any(item.get_closest_marker("cuda") for item in items):
        return
    import torch

    there = torch.cuda.device_count()
    left_out = [
        item
        for item in items
        if (mark := item.get_closest_marker("cuda")) and mark.kwargs.get("devices", 1) > there
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
