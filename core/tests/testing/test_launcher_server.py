"""The server of test processes where something goes wrong: nobody waits for ever, and nothing stays behind."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from hekaton.testing import client, run_processes, start_function

FILE = Path(__file__).with_name("launched.py")


def test_a_server_does_not_leave_while_a_client_comes(tmp_path: Path) -> None:
    (tmp_path / "of-it").mkdir()
    run_processes(
        FILE,
        "a_client_comes_while_the_server_leaves",
        processes=1,
        timeout=10,
        folder=str(tmp_path / "of-it"),
    )


def test_a_server_that_does_not_answer_is_an_error_with_its_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIME", 0.1)
    monkeypatch.setattr(client, "STACK_TIME", 0.1)
    with start_function(FILE, "sleep") as running, socket.socket(socket.AF_UNIX) as listener:
        running.wait_for("sleeps")
        running.send_signal(signal.SIGSTOP)
        (tmp_path / "pid").write_text(str(running.pid))
        (tmp_path / "log").symlink_to(running.stderr_file)
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        monkeypatch.setattr(client, "server_folder", lambda: tmp_path)
        for question, what in (
            ({"current": True}, "whether what it has imported is current"),
            ({"module": "hekaton", "arguments": ["plugins"]}, "to start 'hekaton plugins'"),
        ):
            said = f"was asked {what}, did not answer in 0.1 s, and was ended:\nFatal Python error: Aborted"
            with pytest.raises(AssertionError, match=f"(?s){said}.* in sleep\n"):
                client._ask(client._connected(), question)
        assert running.wait(10) == -signal.SIGABRT


def test_a_process_ends_where_the_server_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    with start_function(FILE, "sleep") as running:
        with monkeypatch.context() as now, pytest.raises(AssertionError, match="has died"):
            here, other = socket.socketpair()
            other.close()
            now.setattr(running, "_connection", here)
            running.close()
        here.close()
        assert running.wait(10) == -signal.SIGKILL
