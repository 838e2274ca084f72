"""Folders in which something else stands where a file or a folder should: nothing hangs, nothing else changes."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.folders import Folder
from hekaton.checkpoint.disk.manifest import NotWhole
from hekaton.checkpoint.runs.inspection import find_steps, tensors_of, verify
from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.errors import CheckpointError

Make = Callable[..., CheckpointManager]
Parts = Callable[[float], dict[str, dict[str, torch.Tensor]]]
Messages = Callable[[], list[str]]

pytestmark = pytest.mark.timeout(60)


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


def put_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # its address may be no longer than 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def put_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_folder(path: Path) -> None:
    path.mkdir()


KINDS = [put_fifo, put_link_to_fifo, put_socket, put_link_to_device, put_folder]


@pytest.fixture
def step(folder: Path, manager: Make, parts: Parts) -> Path:
    manager().save(1, parts(1.0), {})
    return folder / "step-1"


@pytest.mark.parametrize("name", ["manifest.json", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("put", KINDS)
def test_special_files_are_refused_and_not_opened(
    put: Callable[[Path], None], name: str, step: Path, where: Folder, manager: Make, parts: Parts
) -> None:
    (step / name).unlink()
    put(step / name)
    with pytest.raises(CheckpointError, match="none of the checkpoints") as error:
        manager().load(parts(0.0))
    assert f"step-1: {name} cannot be read: it is not a regular file" in str(error.value)
    (found,) = find_steps(str(where))
    assert verify(found)
    with pytest.raises(CheckpointError):
        open_model(step)
    if name == ".metadata":
        (step / "manifest.json").unlink()
        (found,) = find_steps(str(step))
        with pytest.raises(NotWhole, match="it is not a regular file"):
            tensors_of(found)


@pytest.mark.parametrize("put", KINDS[:-1])
def test_a_lock_that_is_no_file_is_replaced(
    put: Callable[[Path], None], folder: Path, where: Folder, manager: Make, messages: Messages
) -> None:
    folder.mkdir(parents=True)
    put(folder / "lock.json")
    mine = manager()
    mine.lock()
    assert stat.S_ISREG((folder / "lock.json").lstat().st_mode)
    mine.close()
    assert messages() == [f"{where}: taking over lock.json, which no run wrote: it is not a regular file"]


def test_a_lock_that_is_a_link_to_itself_is_replaced(folder: Path, where: Folder, manager: Make) -> None:
    folder.mkdir(parents=True)
    (folder / "lock.json").symlink_to("lock.json")
    mine = manager()
    mine.lock()
    assert stat.S_ISREG((folder / "lock.json").lstat().st_mode)
    mine.close()


@pytest.mark.parametrize("name", ["manifest.json", ".metadata"])
def test_a_file_of_gigabytes_is_refused_before_it_is_read(
    name: str, step: Path, where: Folder, signed: Callable[..., None], manager: Make, parts: Parts
) -> None:
    if name == ".metadata":
        signed(step, version=2)
    os.truncate(step / name, 3 << 30)  # with a hole: it takes no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    with pytest.raises(CheckpointError, match="none of the checkpoints") as error:
        manager().load(parts(0.0))
    assert name in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 < before + (600 << 20)


def test_metadata_of_gigabytes_is_refused_by_its_size(step: Path) -> None:
    (step / "manifest.json").unlink()
    os.truncate(step / ".metadata", 3 << 30)
    (found,) = find_steps(str(step))
    with pytest.raises(NotWhole, match=r"\.metadata cannot be read: it has 3,221,225,472 bytes, more than"):
        tensors_of(found)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_of_a_step_that_is_a_link_the_link_alone_is_removed(
    folder: Path, manager: Make, parts: Parts, messages: Messages
) -> None:
    saver = manager(keep_latest_k=2)
    for step in (1, 2):
        saver.save(step, parts(float(step)), {})
    archive = folder.parent / "archive"
    (folder / "step-1").rename(archive)
    (folder / "step-1").symlink_to("../archive")
    before = files_of(archive)
    saver.save(3, parts(3.0), {})
    assert not (folder / "step-1").is_symlink()
    assert files_of(archive) == before
    saver.save(4, parts(4.0), {})
    assert sorted(path.name for path in folder.iterdir()) == ["step-3", "step-4"]
    assert messages() == []


def test_a_step_that_is_a_link_is_superseded_and_replaced_as_a_link(
    folder: Path, manager: Make, parts: Parts
) -> None:
    saver = manager()
    for step in (1, 2, 3):
        saver.save(step, parts(float(step)), {})
    archive = folder.parent / "archive"
    archive.mkdir()
    for step in (2, 3):
        (folder / f"step-{step}").rename(archive / f"{step}")
        (folder / f"step-{step}").symlink_to(f"../archive/{step}")
    before = files_of(archive)
    again = manager()
    assert again.load(parts(0.0), step=2)
    again.save(2, parts(20.0), {})
    assert files_of(archive) == before
    assert (folder / "superseded" / "step-3" / "manifest.json").read_bytes() == before[
        str(archive / "3" / "manifest.json")
    ], "a relative link is led to where it led before"
    assert not (folder / "step-2").is_symlink()


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


def put_file(path: Path) -> None:
    path.write_text("notes")


def put_link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


IN_THE_WAY = {
    put_loop: r"'{name}': Too many levels of symbolic links",
    put_file: r"'{name}' is not a folder",
    put_fifo: r"'{name}' is not a folder",
    put_link_to_nowhere: r"'{name}' is a link that leads nowhere",
}


@pytest.mark.parametrize("where", ["disk"], indirect=True)
@pytest.mark.parametrize(
    "name", ["superseded", "step-7", "step-7.replaced", "step-7-hf", "superseded/step-7"]
)
@pytest.mark.parametrize("put", IN_THE_WAY)
def test_obstacles_to_saving_are_named_at_the_start(
    put: Callable[[Path], None], name: str, folder: Path, where: Folder, manager: Make
) -> None:
    (folder / name).parent.mkdir(parents=True)
    put(folder / name)
    before = sorted(str(path) for path in folder.rglob("*"))
    with pytest.raises(CheckpointError) as error:
        manager().lock()
    said = IN_THE_WAY[put].format(name=Path(name).name)
    assert str(error.value) == f"cannot write to the checkpoint folder {where}: {said}"
    assert sorted(str(path) for path in folder.rglob("*")) == before


def test_links_to_folders_are_allowed(folder: Path, manager: Make, parts: Parts) -> None:
    (folder.parent / "kept").mkdir(parents=True)
    folder.mkdir()
    (folder / "superseded").symlink_to("../kept")
    mine = manager()
    mine.lock()
    for step in (1, 2):
        mine.save(step, parts(float(step)), {})
    mine.close()
    again = manager()
    assert again.load(parts(0.0), step=1)
    again.save(2, parts(2.5), {})
    assert (folder.parent / "kept" / "step-2" / "manifest.json").exists()


@pytest.mark.parametrize("put", [put_loop, put_fifo, put_link_to_device])
def test_a_checkpoint_folder_that_is_not_a_folder_is_named(
    put: Callable[[Path], None], folder: Path, manager: Make, parts: Parts
) -> None:
    folder.parent.mkdir(parents=True)
    put(folder)
    with pytest.raises(CheckpointError, match="cannot write to the checkpoint folder"):
        manager().lock()
    with pytest.raises(CheckpointError):
        manager().save(1, parts(1.0), {})
