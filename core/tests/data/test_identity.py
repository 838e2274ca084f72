"""States of files, and when they can be trusted."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from pathlib import Path

import pytest

from hekaton.data.identity import FileState, fingerprint, sample, settled_state


def state(path: Path) -> FileState:
    return FileState.of(path.stat())


def test_a_state_differs_after_whatever_was_done_to_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    time.sleep(0.05)
    states = [state(path)]
    path.write_bytes(b"two")
    os.utime(path, ns=times)
    states.append(state(path))
    shutil.copy2(path, tmp_path / "b")
    (tmp_path / "b").replace(path)
    os.utime(path, ns=times)
    states.append(state(path))
    assert {(found.size, found.modified) for found in states} == {(3, times[1])}
    assert len(set(states)) == 3


def test_a_state_is_settled_when_the_tick_of_the_change_is_over(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for _ in range(5):
        path.write_bytes(b"one")
        with path.open("rb") as stream:
            found = settled_state(stream.fileno())
        assert time.time() - found.changed / 1e9 >= 0.02
        assert found == state(path)


@pytest.mark.parametrize(
    ("age", "nanoseconds", "waited"),
    [(0.0, 1, 0.02), (0.0, 0, 2.0), (1.5, 0, 0.5), (10.0, 0, 0.0), (-3600.0, 0, 2.0), (-3600.0, 1, 0.02)],
)
def test_the_wait_for_a_settled_state_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, nanoseconds: int, waited: float
) -> None:
    """Whole seconds are the times of a coarse file system; a clock that is ahead is waited for no longer."""
    changed = 1_700_000_000 * 10**9 + nanoseconds
    sleeps: list[float] = []
    monkeypatch.setattr(FileState, "of", lambda _: FileState(1, 2, 3, changed))
    monkeypatch.setattr(time, "time", lambda: changed / 1e9 + age)
    monkeypatch.setattr(time, "sleep", sleeps.append)
    with (tmp_path / "a").open("wb") as stream:
        settled_state(stream.fileno())
    assert sum(sleeps) == pytest.approx(waited, abs=1e-6)


def test_a_sample_is_from_all_over_a_file_and_all_of_a_small_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    content = os.urandom(16 * 4096)
    path.write_bytes(content)
    with path.open("rb") as stream:
        assert sample(stream.fileno(), len(content)) == content
    content = os.urandom(10_000_000)
    path.write_bytes(content)
    with path.open("rb") as stream:
        found = sample(stream.fileno(), len(content))
    assert len(found) == 16 * 4096
    assert found[:4096] == content[:4096]
    assert found[-4096:] == content[-4096:]
    places = [content.index(found[start : start + 4096]) for start in range(0, len(found), 4096)]
    assert max(after - before for before, after in itertools.pairwise(places)) < 10_000_000 / 14


def test_a_fingerprint_knows_where_parts_end() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("ab", b"c") == fingerprint(b"ab", "c")
    assert fingerprint(FileState(1, 2, 3, 4)) != fingerprint(FileState(1, 2, 3, 5))
    assert len(fingerprint("\udcff")) == 32
