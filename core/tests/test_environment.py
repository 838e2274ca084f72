"""What a launcher says in the environment, right and wrong."""

from __future__ import annotations

import pytest

from hekaton.distributed import this_process
from hekaton.environment import LaunchedRank, among_others, launched
from hekaton.errors import ConfigError

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ADDRESS = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1234"}


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_the_place_of_a_process_is_read(environment):
    assert launched() == LaunchedRank(0, 0, 1)
    assert not among_others()
    environment(RANK="3", LOCAL_RANK="1", WORLD_SIZE="4", **ADDRESS)
    assert launched() == LaunchedRank(3, 1, 4)
    assert among_others()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "the environment's WORLD_SIZE must be a number, at least 1, not 'abc'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number, at least 1, not '0'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be a number"),
        ({"RANK": "-1"}, "RANK must be a number, at least 0, not '-1'"),
        ({"RANK": "1.0"}, "RANK must be a number"),
        ({"RANK": "٣"}, "RANK must be a number"),
        ({"RANK": "9" * 5000}, "RANK must be a number"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE must be a number"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK must be a number"),
        ({"RANK": "5"}, "RANK = 5, but there are ranks 0 to 0, since WORLD_SIZE is not set"),
        ({"RANK": "4", "WORLD_SIZE": "4", **ADDRESS}, "RANK = 4, but there are ranks 0 to 3"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE = 4, but not RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "a"}, "WORLD_SIZE = 4, but not MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "b"}, "MASTER_PORT must be a"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "is above 65535"),
    ],
    ids=lambda value: " ".join(f"{k}={v[:9]}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_contradicting_launcher_variables_are_rejected(environment, variables, message):
    environment(**variables)
    among_others()  # asked for wherever an error is told
    with pytest.raises(ConfigError) as caught:
        this_process()
    assert message in str(caught.value)
