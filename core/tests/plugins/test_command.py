"""The ``hekaton`` command itself: verbs, errors, exit statuses, and what it does not import."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from hekaton import __version__
from hekaton.cli import main, report
from hekaton.errors import ConfigError, HekatonError
from hekaton.testing import run_command, run_processes

SHOUT = """
    @hookimpl
    def hekaton_commands():
        return [Command("shout", run=Ref("shout_dist:run"), summary="print louder")]

    def run(arguments):
        print(" ".join(arguments).upper())
        return 7
"""

FAIL = """
    @hookimpl
    def hekaton_commands():
        return [Command("fail", run=Ref("fail_dist:run"))]

    def run(arguments):
        from hekaton.errors import ConfigError
        if arguments == ["interrupt"]:
            raise KeyboardInterrupt
        if arguments == ["exit"]:
            raise SystemExit(3)  # as argparse does
        if arguments == ["bug"]:
            raise ZeroDivisionError("ours")
        if arguments == ["pipe"]:
            raise BrokenPipeError("of a worker, not of stdout")
        raise ConfigError("no such thing", origin="run.toml, line 3", hint="try another\\nor none")
"""


def hekaton(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hekaton", *arguments], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["--plugins.load", "json", "--help"]])
def test_usage_lists_the_verbs(capsys, arguments):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: hekaton VERB")
    for verb in ["train", "checkpoint", "config", "plugins"]:
        assert f"\n  {verb} " in printed


def test_usage_says_where_a_verb_comes_from_unless_it_is_built_in(install, capsys):
    install("shout-dist", SHOUT, version="3.4")
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "shout print louder (from shout-dist 3.4)" in [" ".join(line.split()) for line in lines]
    (plugins_line,) = [line for line in lines if line.startswith("  plugins ")]
    assert "(from" not in plugins_line


def test_usage_mentions_plugins_that_did_not_load(install, capsys):
    main(["--help"])
    assert "could not be loaded" not in capsys.readouterr().out
    install("broken-dist", "import absent_library")
    assert main(["--help"]) == 0
    assert (
        "Some plugins could not be loaded; 'hekaton plugins' says which and why." in capsys.readouterr().out
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hekaton {__version__}\n"


def test_a_plugins_verb_gets_its_arguments_and_gives_the_status(install, capsys):
    install("shout-dist", SHOUT)
    assert main(["shout", "hey", "--you"]) == 7
    assert capsys.readouterr().out == "HEY --YOU\n"


def test_a_verb_of_an_unpackaged_plugin_with_the_flag_on_either_side(install, site, capsys):
    install("shout-dist", SHOUT)
    (site / "shout_dist-1.2.dist-info" / "entry_points.txt").unlink()
    assert main(["shout"]) == 2
    assert "unknown command 'shout'" in capsys.readouterr().err
    for arguments in (
        ["--plugins.load", "shout_dist", "shout", "hey"],
        ["shout", "hey", "--plugins.load=shout_dist"],
    ):
        assert main(arguments) == 7
        assert capsys.readouterr().out.startswith("HEY --PLUGINS.LOAD")


def test_a_plugins_verb_does_not_run_while_plugins_clash(install, capsys):
    install("shout-dist", SHOUT)
    install("whisper-dist", SHOUT.replace("shout_dist", "whisper_dist"))
    assert main(["shout"]) == 2
    assert "two plugins contribute the command 'shout'" in capsys.readouterr().err


def test_an_unknown_verb_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        "error: unknown command 'trian'\n  did you mean 'train'?\n  choose one of: "
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--versoin"], "error: unknown option '--versoin' before the verb\n  did you mean '--version'?"),
        (["--training.steps", "5"], "error: unknown option '--training.steps' before the verb"),
        (["--plugins.load"], "error: --plugins.load needs a value\n"),
        (["plugins", "--plugins.load", "--json"], "error: --plugins.load needs a value\n"),
        (
            ["plugins", "--jason"],
            "error: unknown argument '--jason' of hekaton plugins\n  usage: hekaton plugins",
        ),
    ],
)
def test_wrong_arguments_are_refused(capsys, arguments, message):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(message)


def test_an_error_is_printed_with_origin_and_hint_and_without_a_traceback(install, capsys):
    install("fail-dist", FAIL)
    assert main(["fail"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: no such thing\n  from: run.toml, line 3\n  try another\n  or none\n"


def test_ctrl_c_is_130_and_a_bug_is_raised(install):
    install("fail-dist", FAIL)
    assert main(["fail", "interrupt"]) == 130
    with pytest.raises(SystemExit):
        main(["fail", "exit"])
    with pytest.raises(ZeroDivisionError):
        main(["fail", "bug"])


def test_a_broken_pipe_that_is_not_stdout_is_raised(install, site):
    install("fail-dist", FAIL)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run_command("fail", "pipe", environment=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 1
    assert "BrokenPipeError: of a worker, not of stdout" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(unbuffered):
    with subprocess.Popen(
        [sys.executable, "-m", "hekaton", "plugins"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    ) as process:
        process.stdout.close()
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("environment", "printed"),
    [
        ({}, "error: wrong\n"),
        ({"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "4"}, "error: wrong\n"),
        ({"LOCAL_RANK": "3", "RANK": "7", "WORLD_SIZE": "8"}, "waits\nrank 7: error: wrong\n"),
        ({"LOCAL_RANK": "0", "RANK": "4", "WORLD_SIZE": "8"}, "error: wrong\n"),
    ],
)
def test_before_the_process_group_the_first_process_of_a_node_prints_an_error(
    monkeypatch, capsys, environment, printed
):
    for name in ["LOCAL_RANK", "RANK", "WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: print("waits", file=sys.stderr))
    report(ConfigError("wrong"))
    assert capsys.readouterr().err == printed


@pytest.mark.slow
def test_torchrun_shows_an_error_once(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=3",
            "-m",
            "hekaton",
            "trian",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode != 0
    assert done.stderr.count("error: unknown command 'trian'") == 1


IN_A_GROUP = """
import datetime, torch.distributed as dist
from hekaton.cli import report
from hekaton.errors import DataError

def meet_an_error():
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    if dist.get_rank() == 1:
        error = DataError("the file is gone")
    dist.barrier()
    rank = dist.get_rank()
    dist.destroy_process_group()
    if rank == 1:
        report(error)
"""


def test_after_the_process_group_every_rank_prints_its_own_error(tmp_path):
    (tmp_path / "script.py").write_text(IN_A_GROUP)
    ranks = run_processes(tmp_path / "script.py", "meet_an_error", processes=2)
    assert [rank.stderr for rank in ranks] == ["", "rank 1: error: the file is gone\n"]


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], ["torch", "pydantic", "rich"]),
        (["--version"], ["torch", "pydantic", "rich"]),
        (["plugins"], ["torch"]),
        (["plugins", "--json"], ["torch"]),
    ],
)
def test_what_the_command_does_not_import(arguments, absent):
    code = (
        "import sys; from hekaton.cli import main; status = main(sys.argv[1:]);"
        f"loaded = [module for module in {absent} if module in sys.modules];"
        "sys.exit(f'imported {loaded}' if loaded else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"]])
def test_the_command_answers_at_once(arguments):
    # 0.1 s on an idle machine, see benchmarks/cli_startup.py; importing torch alone takes longer than this.
    durations = []
    for _ in range(3):
        start = _processor_time()
        hekaton(*arguments)
        durations.append(_processor_time() - start)
    assert min(durations) < 1


def _processor_time():
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_every_error_of_ours_exits_with_2():
    def below(kind):
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    assert {kind.exit_code for kind in below(HekatonError)} == {2}
