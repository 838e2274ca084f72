"""Which files a path means: links, hidden files, odd names, what is beside the data."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from hekaton.errors import DataError
from hekaton_hf.files import find_files
from hekaton_hf.sections import TextDatasetSection
from hekaton_hf.text import build


def jsonl(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"text": text}) + "\n")
    return path


def read(path: str) -> str:
    documents = build(TextDatasetSection(), path)
    return " ".join(documents.fetch(range(len(documents))))


def refused(path: str) -> str:
    with pytest.raises(DataError) as e:
        read(path)
    return str(e.value)


def test_links_to_folders_and_files_are_followed(here: Path) -> None:
    jsonl(here / "elsewhere/deep/a.jsonl", "a")
    jsonl(here / "blobs/5f3c", "b")
    (here / "data").mkdir()
    (here / "data/linked").symlink_to(here / "elsewhere")
    (here / "data/b.jsonl").symlink_to("../blobs/5f3c")
    assert read("data") == "b a"
    assert read("data/**/*.jsonl") == "b a"
    assert read("data/linked/deep/*") == "a"


def test_each_file_once_whatever_leads_to_it(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="hekaton")
    jsonl(here / "data/v2/a.jsonl", "a")
    (here / "data/current").symlink_to("v2")
    assert read("data") == "a"
    assert "text: 1 document in 1 file, 0.00 GB; skipped 1 link to a file that is read already" in caplog.text
    assert read("data/v2/a.jsonl,data/current/*") == "a"


@pytest.mark.parametrize("target", ["..", ".", "../..", "../../data"])
@pytest.mark.parametrize("path", ["data", "data/**/*.jsonl", "data/**"])
def test_a_link_to_a_folder_that_it_lies_in(here: Path, target: str, path: str) -> None:
    jsonl(here / "data/a.jsonl", "a")
    (here / "data/more").mkdir()
    (here / "data/more/loop").symlink_to(target)
    message = refused(path)
    assert "data/more/loop' is a link to '" in message
    assert "a folder that it lies in" in message
    assert read("data/*.jsonl") == "a"


def test_links_that_lead_to_each_other(here: Path) -> None:
    jsonl(here / "data/a.jsonl", "a")
    (here / "data/x.jsonl").symlink_to("y.jsonl")
    (here / "data/y.jsonl").symlink_to("x.jsonl")
    assert "cannot read 'data/x.jsonl': Too many levels of symbolic links" in refused("data")
    for name in ("1", "2"):
        (here / name).mkdir()
    (here / "1/to2").symlink_to(here / "2")
    (here / "2/to1").symlink_to(here / "1")
    jsonl(here / "1/a.jsonl", "a")
    assert "a folder that it lies in" in refused("1")


def test_a_broken_link_is_an_error(here: Path) -> None:
    jsonl(here / "data/a.jsonl", "a")
    (here / "data/b.jsonl").symlink_to("gone")
    assert "'data/b.jsonl' is a link to 'gone', which is not there" in refused("data")
    assert "'data/b.jsonl' is a link to 'gone', which is not there" in refused("data/b.jsonl")


def test_what_lies_beside_the_data(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="hekaton")
    jsonl(here / "data/a.jsonl", "a")
    jsonl(here / "data/b.ndjson", "b")
    jsonl(here / "data/.ipynb_checkpoints/a-checkpoint.jsonl", "hidden")
    jsonl(here / "data/.c.jsonl", "hidden")
    (here / "data/._a.jsonl").write_bytes(b"\0\x05\x16\x07")
    jsonl(here / "data/__MACOSX/a.jsonl", "hidden")
    (here / "data/dataset_infos.json").write_text('{"text": {"description": "x"}}')
    (here / "data/state.json").write_text('{"_data_files": [{"filename": "data-00000.arrow"}]}')
    (here / "data/package.json").write_text('{\n  "name": "not data"\n}\n')
    (here / "data/info.json").write_text('{"text": {"in": "the way"}}')
    (here / "data/empty.jsonl").touch()
    (here / "data/README.md").write_text("x")
    (here / "data/LICENSE").write_text("x")
    os.mkfifo(here / "data/pipe.jsonl")
    assert read("data") == "a b"
    assert (
        "text: 2 documents in 2 files, 0.00 GB; skipped 4 hidden, 1 of another format (no suffix), "
        "1 of another format (.md), 4 descriptions of a dataset, 1 special file, 1 without a document"
    ) in caplog.text
    assert read("data/*.*json*") == "a b"


def test_what_is_named_is_read_or_refused(here: Path) -> None:
    jsonl(here / ".hidden/.a.jsonl", "hidden")
    assert read(".hidden/.a.jsonl") == "hidden"
    assert read(".hidden/.*.jsonl") == "hidden"
    assert read(".h*/.a.jsonl") == "hidden"
    assert (
        refused(".hidden")
        == "no files match '.hidden'\n  '" + str(here / ".hidden") + "' has no files but hidden ones"
    )
    jsonl(here / ".hidden/b.jsonl", "b")
    assert read(".hidden") == "b"
    (here / "state.json").write_text('{"a": 1}')
    assert "no column 'text' in" in refused("state.json")
    os.mkfifo(here / "pipe.jsonl")
    assert refused("pipe.jsonl") == "cannot read 'pipe.jsonl': it is no regular file"
    assert "it is no regular file" in refused("/dev/null.jsonl,pipe.jsonl") or "no files match" in refused(
        "/dev/null.jsonl,pipe.jsonl"
    )


ODD = [
    "a::b.jsonl", "zip::x.jsonl", "hf://x.jsonl".replace("/", "_"), "file:x.jsonl", "a,b.jsonl", "{a}.jsonl", "{a,b}.jsonl",
    "[ab].jsonl", "a*.jsonl", "a?.jsonl", " a.jsonl", "a .jsonl", "a\nb.jsonl", "~.jsonl", "a%20b.jsonl", "größe.jsonl",
    "-.jsonl", "a\\b.jsonl", "#.jsonl", "a'b\".jsonl", os.fsdecode(b"\xff.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_unusual_file_names_are_read(here: Path, name: str) -> None:
    jsonl(here / "data" / name, "odd")
    jsonl(here / "data" / "ab.jsonl", "ab")
    for path in (f"data/{name}", str(here / "data" / name)):
        assert read(path) == "odd"
    assert sorted(read("data").split()) == sorted(read("data/*.jsonl").split()) == ["ab", "odd"]
    assert read(f"data/{name},data/ab.jsonl") == "odd ab"
    jsonl(here / name / "deep.jsonl", "deep")  # a folder with this name
    assert read(f"{name}/deep.jsonl") == read(f"{name}/*.jsonl") == read(name) == "deep"
    (here / "data" / name).write_text("{")
    assert "line 1: not JSON" in refused("data").encode("utf-8", "strict").decode()


def test_a_folder_that_cannot_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(here / "data/more/a.jsonl", "a")
    real = os.scandir

    def scandir(path: object):  # type: ignore[no-untyped-def]
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", scandir)  # root may read everything
    assert refused("data") == "cannot read the folder 'data/more': Permission denied"


def test_the_home_folder_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    jsonl(here / "data/a.jsonl", "a")
    assert read("~/data") == read("~/data/*.jsonl") == read("~/data/a.jsonl") == "a"
    assert "no files match '~nobody-of-this-name/a.jsonl'" in refused("~nobody-of-this-name/a.jsonl")


@pytest.mark.parametrize("path", ["\0", "a\0b/*.jsonl", "x" * 5000, "x/" * 3000, ",", "{}", "{,}", "{", "**"])
def test_invalid_paths_are_errors(here: Path, path: str) -> None:
    with pytest.raises(DataError, match="no files match"):
        find_files(path)
