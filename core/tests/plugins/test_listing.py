"""``hekaton plugins``."""

from __future__ import annotations

import io
import json

import pytest

from hekaton.cli import main

PLUGIN = """
    HEKATON_API = ">=1,<2"

    @hookimpl
    def hekaton_models():
        return [Model("tiny", spec=Ref("a:b"), summary="two [bold] layers")]

    @hookimpl
    def hekaton_lr_schedules():
        return [LRSchedule("flat", build=Ref("a:b"))]

    @hookimpl
    def hekaton_step_ended(step):
        pass
"""


@pytest.fixture
def four(install):
    """One plugin of each status."""
    install("good-dist", PLUGIN, version="0.3")
    install("broken-dist", "import absent_library")
    install("old-dist", "HEKATON_API = '<1'")
    install("left-out", "1 / 0")
    return ["--plugins.disable", "left_out"]


def test_plugins_are_listed_as_text(four, capsys):
    assert main(["plugins", *four]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    at = lines.index("good_dist ok good-dist 0.3 good_dist")
    assert lines[at + 1 : at + 4] == [
        "model tiny two [bold] layers",
        "lr schedule flat",
        "hook hekaton_step_ended",
    ]
    at = lines.index("broken_dist broken broken-dist 1.2 broken_dist")
    assert lines[at + 1] == "ModuleNotFoundError: No module named 'absent_library'"
    at = lines.index("old_dist incompatible old-dist 1.2 old_dist")
    assert lines[at + 1] == "built for plugin API <1, this hekaton has 1.0"
    at = lines.index("left_out disabled left-out 1.2 left_out")
    assert lines[at + 1] == "disabled by the user"
    assert any(line.startswith("builtin ok hekaton ") for line in lines)


def test_text_is_aligned(four, capsys):
    main(["plugins", *four])
    heads = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    columns = {line.index(f" {status} ") for line in heads for status in [line.split()[1]]}
    assert len(columns) == 1


def test_plugins_are_listed_as_json(four, capsys):
    assert main(["plugins", "--json", *four]) == 0
    listing = json.loads(capsys.readouterr().out)
    plugins = {plugin["name"]: plugin for plugin in listing["plugins"]}
    assert plugins["good_dist"] == {
        "name": "good_dist",
        "status": "ok",
        "reason": "",
        "distribution": "good-dist",
        "version": "0.3",
        "module": "good_dist",
        "contributions": [
            {"kind": "model", "name": "tiny", "summary": "two [bold] layers"},
            {"kind": "lr schedule", "name": "flat", "summary": ""},
            {"kind": "hook", "name": "hekaton_step_ended", "summary": ""},
        ],
    }
    assert plugins["left_out"]["status"] == "disabled"
    assert listing["problems"] == []


def test_plugins_are_listed_on_a_terminal(four, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["plugins", *four]) == 0
    printed = terminal.getvalue()
    assert "\x1b[32mok" in printed
    assert "\x1b[31mbroken" in printed
    assert "two [bold] layers" in printed


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_problems_are_printed_and_the_status_is_2(install, capsys, form):
    install("good-dist", PLUGIN)
    install("other-dist", PLUGIN)
    install("typo-dist", "@hookimpl\ndef hekaton_modls(): return []")
    assert main(["plugins", *form]) == 2
    captured = capsys.readouterr()
    for clash in ("model 'tiny'", "lr schedule 'flat'"):
        assert f"error: two plugins contribute the {clash}: plugin 'good_dist'" in captured.err
    assert "implements unknown hook 'hekaton_modls'\n  did you mean 'hekaton_models'?" in captured.err
    if form:
        assert len(json.loads(captured.out)["problems"]) == 3


def test_an_unpackaged_plugin_is_listed(site, capsys):
    (site / "mine.py").write_text(
        "from hekaton.contributions import hookimpl\n@hookimpl\ndef hekaton_models(): return []"
    )
    assert main(["plugins", "--plugins.load", "mine"]) == 0
    assert "mine ok unpackaged mine" in " ".join(capsys.readouterr().out.split())


def test_help_is_printed(capsys):
    assert main(["plugins", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: hekaton plugins [NAME] [--json]")
