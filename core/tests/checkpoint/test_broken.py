"""Damaged steps, other models, disks that refuse: what is loaded instead, and what the user reads."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.folders import Folder
from hekaton.errors import CheckpointError

Make = Callable[..., CheckpointManager]
Parts = Callable[[float], dict[str, dict[str, torch.Tensor]]]
Messages = Callable[[], list[str]]


def cut_short(step: Path) -> None:
    os.truncate(step / "__0_0.distcp", (step / "__0_0.distcp").stat().st_size - 1)


def flip_a_bit(step: Path, name: str = "__0_0.distcp") -> None:
    data = bytearray((step / name).read_bytes())
    data[len(data) // 2] ^= 1
    (step / name).write_bytes(data)


def lose_a_file(step: Path) -> None:
    (step / "__0_0.distcp").unlink()


def lose_the_metadata(step: Path) -> None:
    (step / ".metadata").unlink()


def lose_the_manifest(step: Path) -> None:
    (step / "manifest.json").unlink()


def cut_the_manifest_short(step: Path) -> None:
    text = (step / "manifest.json").read_text()
    (step / "manifest.json").write_text(text[: len(text) // 2])


def edit_the_manifest(step: Path) -> None:
    text = (step / "manifest.json").read_text()
    (step / "manifest.json").write_text(text.replace('"step": 20', '"step": 21'))


def rename_the_folder(step: Path) -> None:
    shutil.copytree(step.parent / "step-10", step, dirs_exist_ok=True)


def write_a_later_format(step: Path) -> None:
    content = json.loads((step / "manifest.json").read_text())
    (step / "manifest.json").write_text(json.dumps(content | {"format": 4}))


DAMAGES = {
    cut_short: r"__0_0\.distcp has [\d,]+ bytes instead of [\d,]+",
    flip_a_bit: r"__0_0\.distcp was changed or damaged: its checksum differs",
    lose_a_file: r"__0_0\.distcp is missing",
    lose_the_metadata: r"\.metadata is missing",
    lose_the_manifest: r"it has no manifest\.json",
    cut_the_manifest_short: r"manifest\.json cannot be read: .*",
    edit_the_manifest: r"manifest\.json was changed after it was written: its checksum differs",
    rename_the_folder: r"it holds step 10: the folder was renamed",
    write_a_later_format: r"manifest\.json is of format 4, this version of hekaton reads 3",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_step_is_skipped_with_a_warning_and_never_for_a_fresh_start(
    damage: Callable[[Path], None],
    folder: Path,
    where: Folder,
    manager: Make,
    parts: Parts,
    messages: Messages,
) -> None:
    saver = manager()
    saver.save(10, parts(10.0), {})
    saver.save(20, parts(20.0), {})
    damage(folder / "step-20")

    into = parts(0.0)
    loaded = manager().load(into)
    assert loaded is not None
    assert loaded.step == 10
    assert into["model"]["norm.weight"].tolist() == [10.0] * 4
    (message,) = messages()
    start = f"skipping checkpoint step-20 in {where}: "
    assert message.startswith(start)
    asked_for = rf"checkpoint step-20 in .* cannot be loaded: {DAMAGES[damage]}\n  available: 10$"
    with pytest.raises(CheckpointError, match=asked_for):
        manager().load(parts(0.0), step=20)

    shutil.rmtree(folder / "step-10")
    with pytest.raises(CheckpointError) as none_left:
        manager().load(parts(0.0))
    reason = message.removeprefix(start)
    assert str(none_left.value) == (
        f"none of the checkpoints in {where} can be loaded\n"
        f"  step-20: {reason}\n  to start from step 0, move that folder away"
    )
    none_left.match(DAMAGES[damage])


def test_a_first_save_that_was_interrupted_is_no_step(
    folder: Path, where: Folder, manager: Make, parts: Parts, messages: Messages
) -> None:
    """There is no step to resume from, and nothing has to be cleared away."""
    manager().save(5, parts(1.0), {})
    (folder / "step-5" / "manifest.json").rename(folder / "step-5" / "unfinished")
    (folder / "step-6").mkdir()
    assert manager().load(parts(0.0)) is None
    assert manager().steps() == []
    assert messages() == [
        f"skipping checkpoint step-6 in {where}: saving it was interrupted",
        f"skipping checkpoint step-5 in {where}: saving it was interrupted",
        f"{where}: no save has completed there yet: there is no step to resume from",
    ]
    with pytest.raises(CheckpointError, match=r"step-5 in .* cannot be loaded: saving it was interrupted"):
        manager().load(parts(0.0), step=5)
    saver = manager()
    saver.save(3, parts(3.0), {})
    assert [path.name for path in folder.iterdir()] == ["step-3"]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_steps_of_every_format_are_loaded_and_verified(
    version: int,
    folder: Path,
    manager: Make,
    parts: Parts,
    messages: Messages,
    signed: Callable[..., None],
) -> None:
    """Format 1 has SHA-256; 1 and 2 leave it to ``.metadata`` where a tensor is."""
    saver = manager()
    saver.save(1, parts(1.0), {})
    saver.save(2, parts(2.0), {})
    step = folder / "step-2"
    signed(step, version=version)
    into = parts(0.0)
    loaded = manager().load(into)
    assert loaded is not None
    assert loaded.step == 2
    assert into["model"]["norm.weight"].tolist() == [2.0] * 4
    flip_a_bit(step)
    loaded = manager().load(into)
    assert loaded is not None
    assert loaded.step == 1
    assert "its checksum differs" in messages()[0]


def test_a_change_of_any_byte_of_the_manifest_is_noticed(folder: Path, manager: Make, parts: Parts) -> None:
    manager().save(1, parts(1.0), {"seen": 12345})
    path = folder / "step-1" / "manifest.json"
    whole = path.read_bytes()
    position = whole.index(b"12345") + 2
    path.write_bytes(whole[:position] + b"9" + whole[position + 1 :])
    with pytest.raises(CheckpointError, match="its checksum differs"):
        manager().load(parts(0.0))


def test_a_checkpoint_of_another_model_says_what_differs(where: Folder, manager: Make) -> None:
    there = {f"layers.{i}.wq": torch.ones(2, 2) for i in range(6)} | {"output": torch.ones(4, 2)}
    manager().save(1, {"model": there, "optimizer": {"output.step": torch.ones(())}}, {})
    here = {"layers.0.wq": torch.zeros(3, 2), "output": torch.zeros(4, 2), "head": torch.zeros(1)}
    other = manager(describe={"model": "qwen3", "flavor": "debugmodel"})
    with pytest.raises(CheckpointError) as error:
        other.load({"model": here, "optimizer": {"head.step": torch.zeros(())}})
    assert str(error.value) == "\n".join(
        [
            f"the checkpoint {where}/step-1 (llama3 8B) does not fit this run (qwen3 debugmodel)",
            "  not in the checkpoint (1): head",
            "  only in the checkpoint (5): layers.1.wq, layers.2.wq, layers.3.wq, layers.4.wq, ...",
            "  of another shape (1): layers.0.wq is (2, 2) in the checkpoint, (3, 2) here",
        ]
    )
    assert all(not tensor.any() for tensor in here.values()), "nothing is loaded from it"


def test_a_part_that_the_checkpoint_does_not_hold_is_named(
    where: Folder, manager: Make, parts: Parts
) -> None:
    manager().save(1, {"model": parts(1.0)["model"], "rng": {}}, {})
    with pytest.raises(CheckpointError) as error:
        manager().load(parts(0.0))
    assert str(error.value) == (
        f"the checkpoint {where}/step-1 (llama3 8B) does not fit this run (llama3 8B)\n"
        "  it holds no 'optimizer', only: model, rng\n"
        '  or reset its state: [checkpoint] exclude_from_loading = ["optimizer"]'
    )


def test_state_of_another_optimizer_names_the_way_on(manager: Make, parts: Parts) -> None:
    manager().save(1, parts(1.0), {})
    other = {"optimizer": {"layer.weight.momentum_buffer": torch.zeros(())}}
    with pytest.raises(CheckpointError, match=r'exclude_from_loading = \["optimizer"\]$'):
        manager().load(parts(0.0) | other)


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "what"), [(100_000, "the tensors"), (2_000, "the metadata"), (100, "everything")]
)
def test_a_disk_that_fills_up_during_a_save_leaves_the_older_step(
    size: int, what: str, folder: Path, where: Folder, manager: Make, parts: Parts
) -> None:
    saver = manager(keep_latest_k=1)
    saver.save(10, parts(10.0), {})
    state = parts(20.0)
    if what == "the tensors":
        state["model"]["large"] = torch.ones(1 << 20)
    with files_limited_to(size), pytest.raises(CheckpointError) as error:
        saver.save(20, state, {})
    assert str(error.value) == f"cannot write the checkpoint {where}/step-20: File too large (rank 0)"
    assert [path.name for path in folder.iterdir()] == ["step-10"]
    with files_limited_to(size), pytest.raises(CheckpointError):
        saver.save(10, state, {})
    into = parts(0.0)
    assert manager().load(into)
    assert into["model"]["norm.weight"].tolist() == [10.0] * 4


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """This process may not write to the folder, root or not."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_a_folder_that_cannot_be_written_is_named(parts: Parts) -> None:
    folder = Path(tempfile.mkdtemp())
    checkpoint = folder / "checkpoint"
    with unwritable(folder), pytest.raises(CheckpointError) as error:
        CheckpointManager(checkpoint, describe={}).save(1, parts(1.0), {})
    folder.rmdir()
    assert str(error.value) == f"cannot write the checkpoint {checkpoint}/step-1: Permission denied"


def test_a_folder_that_cannot_be_written_can_be_loaded(parts: Parts) -> None:
    """What a save left there half done does not keep a run from the last whole step."""
    folder = Path(tempfile.mkdtemp())
    saver = CheckpointManager(folder, describe={})
    for step in (1, 2):
        saver.save(step, parts(float(step)), {})
    (folder / "step-2").rename(folder / "step-2.replaced")
    (folder / "step-2").mkdir()
    (folder / "step-3").mkdir()
    with unwritable(folder):
        loaded = CheckpointManager(folder, describe={}).load(parts(0.0))
        with pytest.raises(CheckpointError) as error:
            CheckpointManager(folder, describe={}).lock()
    shutil.rmtree(folder)
    assert loaded is not None
    assert loaded.step == 2
    assert str(error.value) == f"cannot write to the checkpoint folder {folder}: Permission denied"


def test_a_folder_that_is_a_file_is_named(tmp_path: Path, parts: Parts) -> None:
    (tmp_path / "checkpoint").write_text("")
    with pytest.raises(CheckpointError) as error:
        CheckpointManager(tmp_path / "checkpoint", describe={}).save(1, parts(1.0), {})
    assert str(error.value) == f"cannot write the checkpoint {tmp_path}/checkpoint/step-1: Not a directory"
