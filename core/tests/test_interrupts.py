"""An interrupt within an import waits for its end."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hekaton.interrupts import imports_are_finished

INTERRUPTED = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.3)
whole = True
"""
CALLS = """
import os, signal
from hekaton.interrupts import imports_are_finished
def call():
    with imports_are_finished():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
        said.append("went on")
said = []
try:
    call()
except KeyboardInterrupt:
    said.append("interrupted")
"""


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "interrupted_import.py").write_text(INTERRUPTED)
    (tmp_path / "calls_in_import.py").write_text(CALLS)
    return tmp_path


def test_an_import_that_is_interrupted_is_finished_first(written: Path) -> None:
    def imported() -> None:
        with imports_are_finished():
            importlib.import_module("interrupted_import")
            time.sleep(5)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        imported()
    assert time.monotonic() - began < 4
    assert sys.modules.pop("interrupted_import").whole


def test_the_import_is_the_last_thing_that_is_done(written: Path) -> None:
    def imported() -> None:
        with imports_are_finished():
            importlib.import_module("interrupted_import")

    with pytest.raises(KeyboardInterrupt):
        imported()
    assert sys.modules.pop("interrupted_import").whole


def test_imports_around_the_call_do_not_count(written: Path) -> None:
    assert importlib.import_module("calls_in_import").said == ["interrupted"]
    del sys.modules["calls_in_import"]
