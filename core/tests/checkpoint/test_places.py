"""The checkpoint folder is one folder for all machines, or the run does not start and no step is committed."""

import json
from pathlib import Path

import pytest

from hekaton.checkpoint.disk.places import Place, check_places
from hekaton.checkpoint.ranks import Ranks
from hekaton.errors import CheckpointError
from hekaton.testing import run_processes

ON_PROCESSES = Path(__file__).with_name("places_on_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    (folder / "file").write_text("in the way")
    run_processes(ON_PROCESSES, "run", processes=3, folder=str(folder))
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, str]:
    """What each case says, the same on all ranks."""
    of_ranks = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(3)]
    assert of_ranks[0] == of_ranks[1] == of_ranks[2]
    return dict(of_ranks[0])


@pytest.mark.parametrize("case", ["shared", "seen late", "one machine", "saved"])
def test_one_folder_is_accepted(said: dict[str, str], case: str) -> None:
    assert said[case] == ""


def test_probe_files_are_removed(folder: Path, said: dict[str, str]) -> None:
    left = {path.name for path in folder.iterdir()}
    assert left == {"file", "said-0.json", "said-1.json", "said-2.json", "saved", "saved0", "saved1"}


def test_a_machine_with_a_disk_of_its_own_is_named(folder: Path, said: dict[str, str]) -> None:
    message, hint = said["own disk of rank 2"].split("\n  ")
    assert hint == "the way on"
    seen_by_0, seen_by_2 = message.split("\n")
    is_not = "is not one folder for all machines: rank"
    assert seen_by_0.startswith(
        f"the checkpoint folder {folder}/disk0 {is_not} 0 (host0) does not see what is"
    )
    assert seen_by_0.endswith("written there by rank 2 (host2), 0.6 s after")
    assert seen_by_2.startswith(
        f"the checkpoint folder {folder}/disk1 {is_not} 2 (host2) does not see what is"
    )
    assert seen_by_2.endswith("written there by rank 0 (host0), 0.6 s after")


def test_all_machines_that_are_not_seen_are_named(said: dict[str, str]) -> None:
    assert "by rank 1 (host1), rank 2 (host2), 0.6 s after" in said["own disks"]


def test_the_machine_that_cannot_write_is_named(folder: Path, said: dict[str, str]) -> None:
    assert said["in the way"] == (
        f"cannot write to the checkpoint folder {folder}/file/checkpoint: Not a directory, on rank 1 (host1)\n"
        "  the way on"
    )


def test_a_step_is_not_committed_before_rank_0_sees_all_files(folder: Path, said: dict[str, str]) -> None:
    message = said["saved apart"]
    assert message.startswith(f"cannot write the checkpoint {folder}/saved0/step-1: rank 2 wrote ")
    assert "bytes of __2_0.distcp, which is not there for rank 0" in message
    assert not list(folder.glob("saved0/*/manifest.json"))
    assert not (folder / "saved0" / "step-1").exists()


def test_a_file_of_another_size_is_named(tmp_path: Path) -> None:
    from hekaton.checkpoint.disk.manifest import FileRecord
    from hekaton.checkpoint.disk.step_folders import check_all_there

    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").write_bytes(b"123")
    files = {"a": FileRecord(5, "xxh3_128:"), "b": FileRecord(4, "xxh3_128:")}
    with pytest.raises(CheckpointError, match="rank 1 wrote 4 bytes of b, which has 3 bytes for rank 0"):
        check_all_there(tmp_path, files, [["a"], ["b"]], wait=0.0)
    (tmp_path / "b").write_bytes(b"1234")
    check_all_there(tmp_path, files, [["a"], ["b"]], wait=0.0)


def test_one_process_checks_that_it_can_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = Place(name="job.dump_folder", folder=tmp_path / "file" / "outputs")
    with pytest.raises(CheckpointError, match=r"cannot write to job\.dump_folder .*: Not a directory$"):
        check_places([place], Ranks(None, 0, 1))
    check_places([Place(name="job.dump_folder", folder=tmp_path / "a" / "b")], Ranks(None, 0, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
