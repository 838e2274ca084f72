"""Checkpoints in a store that has no folders to rename and no disk below: what fsspec keeps in memory.

That steps behind a URL are kept as on the disk is shown by the other tests, which run over ``file://`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.folders import folder_at
from hekaton.errors import CheckpointError, ConfigError
from hekaton.urls import UrlPath, check_url

Parts = Callable[[float], dict[str, dict[str, torch.Tensor]]]
Messages = Callable[[], list[str]]

URL = "memory://run/checkpoint"


@pytest.fixture
def store() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def manager(**arguments: Any) -> CheckpointManager:
    return CheckpointManager(UrlPath(URL), **{"describe": {}, **arguments})


def files(store: Any) -> list[str]:
    return sorted(path.removeprefix("/run/checkpoint/") for path in store.find("/run/checkpoint"))


def step(number: int | str) -> list[str]:
    return [f"{number}/{name}" for name in (".metadata", "__0_0.distcp", "manifest.json")]


def loaded(parts: Parts, **arguments: Any) -> tuple[int, float]:
    into = parts(0.0)
    found = manager().load(into, **arguments)
    assert found is not None
    return found.step, into["model"]["norm.weight"][0].item()


def test_steps_are_loaded_and_old_ones_removed(store: Any, parts: Parts, messages: Messages) -> None:
    assert manager().load(parts(0.0)) is None
    saver = manager(keep_latest_k=2)
    for number in (1, 2, 3):
        assert str(saver.save(number, parts(float(number)), {})) == f"{URL}/step-{number}"
    assert files(store) == step("step-2") + step("step-3")
    assert loaded(parts) == (3, 3.0)
    assert loaded(parts, step=2) == (2, 2.0)
    assert messages() == []


def test_torch_reads_what_is_in_the_store(store: Any, parts: Parts) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader

    manager().save(1, parts(1.5), {})
    into = parts(0.0)["model"]
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(into, storage_reader=FsspecReader(f"{URL}/step-1"), no_dist=True)
    assert into["norm.weight"].tolist() == [1.5] * 4


def test_a_step_is_replaced_and_set_aside(store: Any, parts: Parts) -> None:
    saver = manager()
    for number in (1, 2, 3):
        saver.save(number, parts(float(number)), {})
    saver.save(3, parts(3.5), {})
    assert loaded(parts) == (3, 3.5)
    after = manager()
    assert after.load(parts(0.0), step=1)
    after.save(2, parts(-2.0), {})
    assert files(store) == sorted(
        step("step-1") + step("step-2") + step("superseded/step-2") + step("superseded/step-3")
    )
    assert loaded(parts) == (2, -2.0)


class Cut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_save_interrupted_at_any_operation_of_the_store_keeps_a_whole_step(
    interrupted: bool, store: Any, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replace the only step, or begin with what such a save left; from whatever the store then holds, a run
    goes on and nothing is half there."""
    manager().save(1, parts(1.0), {})
    if interrupted:
        store.mv("/run/checkpoint/step-1", "/run/checkpoint/step-1.replaced", recursive=True)
        store.pipe_file("/run/checkpoint/step-1/__0_0.distcp", b"half")
    before = {path: store.cat_file(path) for path in store.find("/run")}
    left = 0

    def cut_at(name: str) -> None:
        change = getattr(type(store), name)

        def noticed(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Cut
            return change(*arguments, **keywords)

        monkeypatch.setattr(type(store), name, noticed)

    for name in ("_rm", "cp_file", "_open", "makedirs", "rmdir"):
        cut_at(name)
    seen = []
    for moment in range(1, 100):
        store.rm("/run", recursive=True)
        for path, data in before.items():
            store.pipe_file(path, data)
        saver = manager()
        saver.load(parts(0.0))
        left = moment
        try:
            saver.save(1, parts(2.0), {})
        except Cut:
            left = 0
            seen.append(loaded(parts))
            goes_on = manager()
            goes_on.load(parts(0.0))
            goes_on.save(2, parts(3.0), {})
            whole = [name for name in files(store) if not name.endswith((".tmp", "/unfinished"))]
            assert whole == step("step-1") + step("step-2")
        else:
            break
    assert len(seen) > 15
    assert seen == sorted(seen)
    assert set(seen) == {(1, 1.0), (1, 2.0)}


def test_a_damaged_object_is_skipped(store: Any, parts: Parts, messages: Messages) -> None:
    saver = manager()
    saver.save(1, parts(1.0), {})
    saver.save(2, parts(2.0), {})
    path = "/run/checkpoint/step-2/__0_0.distcp"
    data = bytearray(store.cat_file(path))
    data[len(data) // 2] ^= 1
    store.pipe_file(path, bytes(data))
    assert loaded(parts) == (1, 1.0)
    assert messages() == [
        f"skipping checkpoint step-2 in {URL}: __0_0.distcp was changed or damaged: its checksum differs"
    ]
    store.rm_file(path)
    assert loaded(parts) == (1, 1.0)
    assert messages()[1].endswith(": __0_0.distcp is missing")
    assert messages()[1].startswith("skipping checkpoint step-")


def test_a_lock_in_a_store(store: Any, parts: Parts, messages: Messages) -> None:
    mine = manager()
    mine.lock()
    mine.save(1, parts(1.0), {})
    assert "lock.json" in files(store)
    mine.close()
    assert files(store) == step("step-1")
    assert messages() == []


def test_errors_of_the_store_are_reported(store: Any, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    class BackendError(Exception):
        """Like those of botocore, not an OSError."""

    def refuses(*_: Any, **__: Any) -> None:
        raise BackendError("no credentials")

    manager().save(1, parts(1.0), {})
    monkeypatch.setattr(type(store), "cp_file", refuses)
    with pytest.raises(CheckpointError) as error:
        manager().save(1, parts(2.0), {})
    monkeypatch.undo()
    assert str(error.value) == f"cannot write the checkpoint {URL}/step-1: BackendError: no credentials"
    assert loaded(parts) == (1, 1.0)


@pytest.mark.parametrize(
    "error", [PermissionError("denied"), ConnectionError("reset"), RuntimeError("botocore")]
)
def test_an_unreachable_store_is_not_taken_for_an_empty_one(
    error: Exception, store: Any, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's own ``exists`` and ``isdir`` say no: a run would start from step 0, and a save remove good steps."""

    def refuses(*_: Any, **__: Any) -> None:
        raise error

    saver = manager(keep_latest_k=1)
    saver.save(1, parts(1.0), {})
    monkeypatch.setattr(type(store), "info", refuses)
    assert not store.exists("/run")
    with pytest.raises(CheckpointError, match=f"cannot read the checkpoint folder {URL}: "):
        manager().load(parts(0.0))
    for number in (1, 2):
        with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
            saver.save(number, parts(2.0), {})
    monkeypatch.undo()
    assert loaded(parts) == (1, 1.0)


def test_a_full_store_keeps_the_older_step(store: Any, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    saver = manager()
    saver.save(1, parts(1.0), {})
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.write", full, raising=False)
    with pytest.raises(CheckpointError) as error:
        saver.save(2, parts(2.0), {})
    monkeypatch.undo()
    assert str(error.value) == f"cannot write the checkpoint {URL}/step-2: No space left on device (rank 0)"
    assert files(store) == step("step-1")
    assert loaded(parts) == (1, 1.0)


def test_a_url_is_not_relative_to_anything() -> None:
    assert folder_at(URL, within="outputs") == UrlPath(URL)
    assert folder_at("checkpoint", within="outputs") == Path("outputs/checkpoint")
    assert str(UrlPath(f"{URL}/") / "step-1") == f"{URL}/step-1"


def test_urls_of_unknown_protocols_are_refused() -> None:
    check_url(URL)
    with pytest.raises(ConfigError) as error:
        check_url("memroy://run")
    assert str(error.value).startswith(
        "'memroy://run': fsspec knows no file system 'memroy'\n  did you mean 'memory'?"
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ConfigError) as error:
        check_url("s3://bucket/run")
    assert str(error.value) == (
        "'s3://bucket/run': the package for s3:// is not installed\n  pip install 'hekaton[s3]'"
    )
