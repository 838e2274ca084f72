from __future__ import annotations

import hashlib
import json
import logging
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import xxhash

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.folders import Folder
from hekaton.urls import UrlPath

streams: Any = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("streams.py"))))

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
def signed() -> Callable[..., None]:
    """Make the manifest of a step agree with its files and with itself, as whoever forges one would."""

    def sign(step: Path, /, *, version: int = 3, **changes: Any) -> None:
        content = json.loads((step / "manifest.json").read_text())
        del content["sha256"]
        for name, record in content["files"].items():
            data = (step / name).read_bytes()
            checksum = {"xxh3_128": xxhash.xxh3_128_hexdigest(data)}
            if version == 1:
                checksum = {"sha256": hashlib.sha256(data).hexdigest()}
            record.clear()
            record.update(size=len(data), **checksum)
        if version < 3:
            del content["tensors"]
        content = {**content, "format": version, **changes}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        (step / "manifest.json").write_text(json.dumps(content | {"sha256": digest}))

    return sign


@pytest.fixture
def unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the test reads: no class or module, no file and no variable is other afterwards."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "file").write_text("content")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    # Python's own pickle, with which tests make streams, keeps notes on the classes that it has met.
    streams.spellings(streams.written_by_torch(tmp_path / "met before"))
    before = streams.world(folder)
    yield
    assert streams.world(folder) == before


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings that were logged so far."""
    caplog.set_level(logging.INFO, logger="hekaton")
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
