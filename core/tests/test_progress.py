"""The bar that shows how far a run is."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from hekaton import progress
from hekaton.cli import data
from hekaton.progress import progress_bar


class Display:
    """IPython's ``display``: keeps what it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, picture, *, raw, display_id):
        assert raw
        assert display_id
        self.shown.append(picture)
        return self

    def update(self, picture, *, raw):
        assert raw
        self.shown.append(picture)


@pytest.fixture
def notebook(monkeypatch):
    """A process behind a notebook, as IPython's kernel makes one."""
    display = Display()
    shell, displays = ModuleType("IPython"), ModuleType("IPython.display")
    shell.get_ipython = lambda: SimpleNamespace(kernel=object())
    displays.display = display
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    return display


def test_there_is_none_in_a_log(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert progress_bar(steps=10, step=0) is None


def test_there_is_none_in_a_shell_of_ipython(notebook):
    sys.modules["IPython"].get_ipython = lambda: SimpleNamespace()
    assert progress_bar(steps=10, step=0) is None


def test_one_output_of_a_notebook_is_replaced(notebook, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress_bar(steps=100, step=10)
    for step in range(11, 71):  # a second for ten steps
        now[0] += 0.1
        bar.show(step)
    bar.close()
    texts = [one["text/plain"] for one in notebook.shown]
    assert texts[0] == "step 10 of 100"
    assert texts[-1] == "step 70 of 100, 0:03 left"
    assert 15 < len(texts) < 35  # not each of the sixty steps
    assert '<progress value="70" max="100"' in notebook.shown[-1]["text/html"]


def test_the_last_step_is_shown(notebook, monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 1.0)
    bar = progress_bar(steps=2, step=0)
    bar.show(1)
    bar.show(2)
    assert [one["text/plain"] for one in notebook.shown] == ["step 0 of 2", "step 2 of 2"]


def test_data_show_says_how_far_the_steps_before_are_read(caplog, monkeypatch):
    monkeypatch.setattr(data, "SAID", -1.0)
    caplog.set_level("INFO", logger="hekaton")
    data._read(SimpleNamespace(next=lambda: None), 1_200)
    assert "read 1,199 of the 1,200 steps before: 0:00:00 left" in caplog.text
