"""The embedded datasets, on the real library and on one made of a few files."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from hekaton.data import Documents
from hekaton.data.stdlib import build, build_validation
from hekaton.errors import DataError


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """200 files, and things that are no documents."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path) if name == "stdlib" else None)
    for number in range(200):
        folder = tmp_path / ("package" if number % 2 else "")
        folder.mkdir(exist_ok=True)
        (folder / f"m{number:03}.py").write_text(f"x = {number}\n")
    (tmp_path / "empty.py").touch()
    (tmp_path / "notes.txt").write_text("no source")
    for folder in ("site-packages", "dist-packages", "test", "package/tests", "package/idle_test"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "left_out.py").write_text("x = 'left out'\n")
    return tmp_path


def everything(documents: Documents) -> list[str]:
    return documents.fetch(range(len(documents)))


def test_every_source_file_is_in_one_of_the_two(library: Path) -> None:
    train, validation = everything(build(None, None)), everything(build_validation(None, None))
    assert sorted(train + validation) == sorted(f"x = {number}\n" for number in range(200))
    assert 1 <= len(validation) <= 12


def test_the_order_is_that_of_relative_paths(library: Path) -> None:
    found = [int(text.split()[-1]) for text in everything(build(None, None))]
    assert found == sorted(found, key=lambda number: (number % 2, number))  # "m..." before "package/m..."


def test_what_is_not_utf8_is_replaced(library: Path) -> None:
    (library / "m000.py").write_bytes(b"x = '\xff'\n")
    assert "x = '\ufffd'\n" in everything(build(None, None)) + everything(build_validation(None, None))


def test_the_fingerprint_is_of_the_content(library: Path) -> None:
    before = build(None, None).fingerprint
    assert build(None, None).fingerprint == before
    assert build_validation(None, None).fingerprint != before
    times = (library / "m002.py").stat()
    os.utime(library / "m002.py", (0, 0))
    assert build(None, None).fingerprint == before
    names = ["m002.py", "m004.py", "m006.py"]  # one or more of them are not for validation
    for name in names:
        (library / name).write_text(f"x = {name[3]}\n")
    assert build(None, None).fingerprint == before
    for name in names:
        (library / name).write_text("x = 9\n")  # the same size
        os.utime(library / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert build(None, None).fingerprint != before


def test_a_file_that_changes_while_a_run_reads(library: Path) -> None:
    documents = build(None, None)
    for file in library.glob("m*.py"):
        file.write_text("x = 'other'\n")
    with pytest.raises(DataError, match=r"'.*\.py' changed since the run started"):
        documents.fetch([0])


def test_a_file_that_is_removed_during_a_run_is_an_error(library: Path) -> None:
    documents = build(None, None)
    for file in library.rglob("*.py"):
        file.unlink()
    with pytest.raises(DataError, match=r"cannot read '.*\.py': No such file or directory"):
        documents.fetch([0])


def test_a_missing_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="dataset 'python_stdlib': no Python source files in"):
        build(None, None)


@pytest.mark.parametrize(
    ("function", "name"), [(build, "python_stdlib"), (build_validation, "python_stdlib_validation")]
)
def test_a_path_is_refused(function, name: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=f"dataset '{name}' takes no dataset_path, but it is set to 'x'"):
        function(None, "x")


def test_the_real_library() -> None:
    train, validation = build(None, None), build_validation(None, None)
    assert isinstance(train, Documents)
    texts = everything(train)
    assert len(texts) > 300
    assert any("Abstract Base Classes (ABCs) according to PEP 3119" in text for text in texts)
    assert not set(texts) & set(everything(validation))
    assert 0.005 < len(validation) / len(texts) < 0.05
