"""Files written past the page cache hold what was written."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from hekaton.checkpoint.disk import direct
from hekaton.checkpoint.disk.direct import DirectFile


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_BUFFER", 1 << 14)


@pytest.mark.parametrize("size", [0, 1, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 5 * (1 << 14) + 4097])
def test_a_file_holds_what_was_written(size: int, tmp_path: Path) -> None:
    content = random.Random(size).randbytes(size)
    with DirectFile(tmp_path / "file") as file:
        for start in range(0, size, 5000):
            assert file.tell() == start
            assert file.write(memoryview(content)[start : start + 5000]) == len(content[start : start + 5000])
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("refused", ["open", "write"])
def test_without_direct_io_the_page_cache_is_used(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    of_os = getattr(os, refused)

    def refuse_once(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        result: int = of_os(*arguments)
        return result

    monkeypatch.setattr(os, refused, refuse_once)
    with DirectFile(tmp_path / "file") as file:
        file.write(b"x" * 40_000)
    assert len(calls) > 1
    assert (tmp_path / "file").read_bytes() == b"x" * 40_000


def test_errors_of_the_disk_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = DirectFile(tmp_path / "file")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        file.write(b"x" * 40_000)
    with pytest.raises(OSError, match="No space left"):
        file.close()
    assert file.closed


def test_a_write_that_failed_is_not_forgotten_when_later_ones_go_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    of_os = os.write

    def full_once(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return of_os(*arguments)

    file = DirectFile(tmp_path / "file")
    monkeypatch.setattr(os, "write", full_once)
    file.write(b"x" * (1 << 14))  # told of nothing yet: it is written in the background
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            file.write(b"x" * (1 << 14))
    with pytest.raises(OSError, match="No space left"):
        file.close()
    assert file.closed
