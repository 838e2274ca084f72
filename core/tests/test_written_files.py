"""What a run writes beside its checkpoints, where somebody has put something else in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hekaton.checkpoint.disk.places import check_places, places_of
from hekaton.checkpoint.ranks import Ranks
from hekaton.config import load
from hekaton.distributed import Process
from hekaton.errors import CheckpointError, ConfigError
from hekaton.failures import shown
from hekaton.failures.whereabouts import Whereabouts
from hekaton.surroundings import write_config


def config_of(folder: Path, *flags: str):
    return load([], ["--job.dump_folder", str(folder), *flags]).config


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    file = tmp_path / "elsewhere"
    file.write_text("keep me\n")
    return file


def put(path: Path, what: str, elsewhere: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere if what == "link" else elsewhere.with_name("nothing"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ["fifo", "link", "dangling link"])
def test_the_configuration_takes_the_place_of_what_has_its_name(
    tmp_path: Path, elsewhere: Path, what: str
) -> None:
    path = tmp_path / "out" / "config.toml"
    put(path, what, elsewhere)
    write_config(config_of(tmp_path / "out"), Process(0, 1, torch.device("cpu")))
    assert "[job]" in path.read_text()
    assert not path.is_symlink()
    assert elsewhere.read_text() == "keep me\n"
    assert not elsewhere.with_name("nothing").exists()


def test_a_folder_of_its_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out" / "config.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot write to '.*config.toml'"):
        write_config(config_of(tmp_path / "out"), Process(0, 1, torch.device("cpu")))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", ["fifo", "link", "dangling link"])
def test_a_traceback_is_written_to_a_file_of_its_own_or_not_at_all(
    tmp_path: Path, elsewhere: Path, what: str
) -> None:
    put(tmp_path / "errors" / "rank_0.txt", what, elsewhere)
    assert shown._kept(0, ValueError("no"), Whereabouts(), tmp_path) == ""
    assert elsewhere.read_text() == "keep me\n"
    assert not elsewhere.with_name("nothing").exists()
    assert shown._kept(1, ValueError("no"), Whereabouts(), tmp_path) != ""
    assert "ValueError: no" in (tmp_path / "errors" / "rank_1.txt").read_text()


def test_a_file_where_traces_go_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "traces").write_text("")
    flags = ["--profiling.save_traces_folder", "traces"]
    check_places(places_of(config_of(tmp_path, *flags)), Ranks.of())  # nothing is traced
    with pytest.raises(CheckpointError, match=r"cannot write to profiling\.save_traces_folder .*traces"):
        check_places(places_of(config_of(tmp_path, *flags, "--profiling.enable_profiling")), Ranks.of())
