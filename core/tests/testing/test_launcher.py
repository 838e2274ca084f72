"""Processes of tests: forked from a clean server, and otherwise as real as those of a fresh interpreter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hekaton.testing import preload, process, run_command, run_processes, start_command, start_function

FILE = Path(__file__).with_name("launched.py")
BOTH = pytest.mark.parametrize(
    "fresh", [pytest.param(False, id="forked"), pytest.param(True, id="fresh", marks=pytest.mark.slow)]
)


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """What the processes say of themselves, by rank."""

    def run(*, processes: int = 1, **options: Any) -> list[dict[str, Any]]:
        run_processes(FILE, "tell", processes=processes, result=str(tmp_path / "told"), **options)
        return [json.loads((tmp_path / f"told-{rank}").read_text()) for rank in range(processes)]

    return run


@BOTH
def test_a_process_has_a_group_an_environment_and_a_folder_of_its_own(
    fresh: bool, told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OF_THE_TEST", "1")
    monkeypatch.setenv("PYTHONPATH", f"/first{os.pathsep}/second")
    ranks = told(processes=2, fresh=fresh)
    assert len({rank["pid"] for rank in ranks}) == 2
    for number, rank in enumerate(ranks):
        assert rank["group"] == rank["pid"]
        assert rank["cwd"] == str(tmp_path)
        assert rank["path"][:3] == [str(tmp_path), "/first", "/second"]
        assert rank["descriptors"][0] == "/dev/null"
        torchrun = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        assert torchrun.items() <= rank["environment"].items()
        assert rank["environment"]["OF_THE_TEST"] == "1"
        assert rank["environment"].keys() - os.environ.keys() <= {
            *torchrun, "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES",
            "TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK",
        }  # fmt: skip
        assert rank["torch_threads"] == 1


def test_a_forked_process_starts_clean(told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "patched_by_a_test", True, raising=False)
    first, second = told(processes=2)
    for rank in (first, second):
        assert not rank["patched"]
        assert rank["threads"] == 1
        assert not rank["cuda"]
        assert not rank["process_group"]
        assert rank["parent"] != os.getpid()
    assert first["parent"] == second["parent"], "one server"
    for ours, theirs in zip(first["random"], second["random"], strict=True):
        assert ours != theirs


def test_nothing_of_the_server_stays_open(tmp_path: Path) -> None:
    with start_command("plugins"):  # another connection that the server has
        run_processes(FILE, "open_descriptors", processes=1, result=str(tmp_path / "open"))
    kinds = json.loads((tmp_path / "open").read_text())
    assert not [kind for kind in kinds if kind.startswith(("socket:", "anon_inode:"))]


def test_what_the_server_must_not_have_is_noticed() -> None:
    run_processes(FILE, "threads_are_noticed", processes=1)


@pytest.mark.slow
def test_importing_computes_no_tensor() -> None:
    code = """
        from torch.utils._python_dispatch import TorchDispatchMode
        from hekaton.testing import preload

        class Seen(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                seen.append(str(function))
                return function(*args, **(kwargs or {}))

        seen = []
        with Seen():
            assert preload.preload(set()) == ""
        # torch.distributed.pipelining has a constant.
        assert seen == ["aten.lift_fresh.default"], seen
        assert preload.unclean() == []
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@BOTH
@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("succeed", 0, ""),
        ("raise", 1, "ValueError: wrong"),
        ("exit", 3, ""),
        ("warn", 1, "DeprecationWarning: careful"),
        ("segfault", -signal.SIGSEGV, 'launched.py", line'),
    ],
)
def test_streams_and_exit_status(fresh: bool, how: str, status: int, said: str) -> None:
    with start_function(FILE, "end", how=how, fresh=fresh) as running:
        assert bool(running.why_fresh) is fresh
        assert running.wait(60) == status
        assert running.stdout == "on stdout\n"
        assert running.stderr.startswith("on stderr\n")
        assert said in running.stderr


@BOTH
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_process(fresh: bool, number: signal.Signals) -> None:
    with start_function(FILE, "sleep", fresh=fresh) as running:
        running.wait_for("sleeps")
        running.send_signal(number)
        # An interrupt is an exception, with which Python ends itself by the same signal.
        assert running.wait(60) == -number


def test_a_process_stops_and_continues() -> None:
    def state() -> str:
        return Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def until(letter: str) -> None:
        end = time.monotonic() + 10
        while state() != letter and time.monotonic() < end:
            time.sleep(0.01)
        assert state() == letter

    with start_function(FILE, "sleep") as running:
        running.wait_for("sleeps")
        running.send_signal(signal.SIGSTOP)
        until("T")
        assert running.poll() is None
        running.send_signal(signal.SIGCONT)
        until("S")
        running.send_signal(signal.SIGSTOP)
        with pytest.raises(AssertionError, match="in sleep"):  # the stack, of a stopped process, too
            running.wait(0.1)


def test_the_end_of_the_block_kills_the_group() -> None:
    with start_function(FILE, "sleep_with_a_child") as running:
        running.wait_for("\n")
        child = int(running.stdout)
        assert running.poll() is None
    assert running.returncode == -signal.SIGKILL
    wait_until_gone(child)


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_timeout_names_the_rank_and_shows_its_stack() -> None:
    with pytest.raises(AssertionError) as caught:
        run_processes(FILE, "the_second_of_two_sleeps", processes=2, timeout=2)
    message = str(caught.value)
    assert message.startswith("the_second_of_two_sleeps on 2 processes:\n--- rank 1, not done after 2 s\n")
    assert "in the_second_of_two_sleeps" in message
    assert "rank 0" not in message


def test_a_failure_names_the_rank_and_ends_the_others() -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)--- rank 1, status 1\n.*ValueError: of rank 1") as caught:
        run_processes(FILE, "the_second_of_two_fails", processes=2)
    assert "rank 0" not in str(caught.value)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("processes", [1, 3])
def test_ranks_find_each_other(tmp_path: Path, processes: int) -> None:
    run_processes(FILE, "all_reduce", processes=processes, result=str(tmp_path / "sum"))
    assert float((tmp_path / "sum").read_text()) == sum(range(processes))


@BOTH
def test_a_command_and_what_it_leaves(fresh: bool, tmp_path: Path) -> None:
    done = run_command("train", "nowhere.toml", cwd=tmp_path, fresh=fresh)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no file 'nowhere.toml'")
    done = run_command("plugins", "--json", cwd=tmp_path, fresh=fresh)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["plugins"][0]["name"] == "builtin"


def test_a_command_on_several_ranks() -> None:
    done = run_command("train", "nowhere.toml", processes=2)
    assert done.returncode == 2
    # Rank 1 leaves the message to rank 0 and waits to be ended, as torchrun does it.
    assert [rank.returncode for rank in done.ranks] == [2, -signal.SIGKILL]
    assert done.stderr == done.ranks[0].stderr
    assert done.stderr.startswith("error: there is no file 'nowhere.toml'")


def test_a_command_that_does_not_end_fails_the_test() -> None:
    flags = ["--training.dataset", "python_stdlib", "--training.steps", "1000000"]
    with pytest.raises(
        AssertionError, match=r"(?s)^hekaton train .*--- rank 0, not done after 2 s\n.*trainer.py"
    ):
        run_command("train", "--model.flavor", "debugmodel", *flags, timeout=2)


def test_a_variable_that_is_read_at_the_start_makes_an_interpreter() -> None:
    with start_command("--version", environment=os.environ | {"TORCH_LOGS": "+all"}) as running:
        assert running.why_fresh == "TORCH_LOGS is read when a process starts"
        assert running.wait(60) == 0


def test_what_libraries_set_when_they_are_imported_makes_no_interpreter() -> None:
    import torch._inductor.config  # noqa: F401  (sets TORCHINDUCTOR_CACHE_DIR)
    import transformers  # noqa: F401

    with start_command("--version") as running:
        assert running.why_fresh == ""


def test_where_there_is_no_fork_there_are_interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "HAS_FORK", False)
    with start_command("--version") as running:
        assert running.why_fresh == "this platform has no fork"
        assert running.wait(60) == 0
        assert running.stdout.startswith("hekaton ")


def test_a_changed_source_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_by_a_test.py").write_text("A = 1\n")
    try:
        import edited_by_a_test  # type: ignore[import-not-found]

        long_ago = time.time() - 1000
        os.utime(edited_by_a_test.__file__, (long_ago, long_ago))
        sources = preload.Sources(since=time.time())
        assert sources.changed() == ""
        (tmp_path / "edited_by_a_test.py").write_text("A = 2\n")
        assert sources.changed() == edited_by_a_test.__file__
        (tmp_path / "edited_by_a_test.py").unlink()
        assert sources.changed() == edited_by_a_test.__file__

        (tmp_path / "edited_by_a_test.py").write_text("A = 3\n")
        with monkeypatch.context() as only:
            only.setattr(sys, "modules", {"edited_by_a_test": edited_by_a_test})
            assert preload.Sources(since=time.time() + 1).changed() == ""
            edited_while_it_loaded = preload.Sources(since=long_ago).changed()
        assert edited_while_it_loaded == edited_by_a_test.__file__
    finally:
        sys.modules.pop("edited_by_a_test", None)


PLUGIN = """
from hekaton.contributions import Command, Ref, hookimpl
HEKATON_API = ">=1"

@hookimpl
def hekaton_commands():
    return [
        Command("say", run=Ref("edited_work:run"), summary="Say."),
        Command("thread", run=Ref("edited_thread:run"), summary="Has a thread."),
    ]
"""
SESSION = """
import os, sys
from hekaton.testing import run_command, start_command
with start_command("say") as running:
    running.wait_for("\\n")
    print(running.stdout.strip(), flush=True)
    for line in sys.stdin:
        if line == "again\\n":
            print(run_command("say", "and end").stdout.strip(), flush=True)
"""
WORK = """
import os, sys, time
def run(words):
    print({version}, os.getppid(), os.getpid(), "edited_thread" in sys.modules, flush=True)
    if not words:
        time.sleep(60)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a test run of its own, where a plugin is installed."""
    (tmp_path / "edited.py").write_text(PLUGIN)
    (tmp_path / "edited_work.py").write_text(WORK.format(version=1))
    (tmp_path / "edited_thread.py").write_text("def run(words): pass\n")
    info = tmp_path / "edited-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edited\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hekaton]\nedited = edited\n")
    return os.environ | {"PYTHONPATH": str(tmp_path), "PYTEST_XDIST_TESTRUNUID": str(tmp_path)}


def session(environment: dict[str, str]) -> subprocess.Popen[str]:
    """As a pytest that has started one process, which runs on."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SESSION], env=environment, stdin=pipe, stdout=pipe, text=True
    )


def read(running: subprocess.Popen[str]) -> tuple[int, int, int, bool]:
    """Version of the module, server, process, and whether the module with the thread was there."""
    assert running.stdout is not None
    version, server, pid, there = running.stdout.readline().split()
    return int(version), int(server), int(pid), there == "True"


@pytest.mark.slow
def test_one_server_a_run_replaced_after_an_edit_and_gone_with_the_last_pytest(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with session(environment) as first, session(environment) as second:  # as two workers of pytest-xdist
        (version, server, one, _), (_, same, two, _) = read(first), read(second)
        assert version == 1
        assert same == server
        os.kill(second.pid, signal.SIGKILL)
        wait_until_gone(two)
        assert is_running(one)
        assert is_running(server)

        (tmp_path / "edited_work.py").write_text(WORK.format(version=2))
        assert first.stdin is not None
        first.stdin.write("again\n")
        first.stdin.flush()
        version, other, _, _ = read(first)
        assert version == 2
        assert other != server
        assert is_running(one), "what was started stays"

        os.kill(first.pid, signal.SIGKILL)
        for pid in (one, server, other):
            wait_until_gone(pid)


@pytest.mark.slow
def test_a_module_whose_import_starts_a_thread_is_left_to_the_processes(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    (tmp_path / "edited_thread.py").write_text(code)
    with session(environment) as first:
        _, server, _, there = read(first)
        assert not there
        first.communicate()
    wait_until_gone(server)
