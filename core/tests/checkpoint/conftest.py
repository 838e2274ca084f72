from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.folders import Folder
from hekaton.urls import UrlPath

DESCRIBE = {"config": {"training": {"steps": 30}}, "model": "llama3", "flavor": "8B", "layout": {"tp": 1}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoint"


@pytest.fixture(params=["disk", "fsspec"])
def where(request: pytest.FixtureRequest, folder: Path) -> Folder:
    """The folder as the manager is told it: as a path, or as a URL, in the way that leads to any store."""
    return folder if request.param == "disk" else UrlPath(f"file://{folder}")


@pytest.fixture
def manager(where: Folder) -> Callable[..., CheckpointManager]:
    """A manager of the folder, as a process that starts anew would make it."""

    def make(**arguments: Any) -> CheckpointManager:
        return CheckpointManager(where, **{"describe": DESCRIBE, **arguments})

    return make


@pytest.fixture
def parts() -> Callable[[float], dict[str, dict[str, torch.Tensor]]]:
    """A state whose every value is the given one, large enough for several writes."""

    def make(value: float) -> dict[str, dict[str, torch.Tensor]]:
        return {
            "model": {
                "layers.0.wq.weight": torch.full((8, 4), value),
                "norm.weight": torch.full((4,), value),
            },
            "optimizer": {"layers.0.wq.weight.step": torch.tensor(value)},
        }

    return make


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings that were logged so far."""
    caplog.set_level(logging.INFO, logger="hekaton")
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
