"""A limit of open files that does not suffice is an error that says so, whoever meets it."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from hekaton.errors import TrainingError
from hekaton.open_files import too_many_files_are_said


@pytest.fixture
def no_more_files() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = os.open(os.devnull, os.O_RDONLY)
    os.close(used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    yield used
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def of_gloo() -> None:
    raise RuntimeError("[enforce fail at .../gloo/transport/tcp/device.cc:186] rv != -1. Too many open files")


def of_python() -> None:
    os.pipe()


@pytest.mark.parametrize("opening", [of_gloo, of_python])
def test_a_limit_that_does_not_suffice_is_an_error_with_its_place(opening, no_more_files):
    with pytest.raises(TrainingError) as e, too_many_files_are_said("in step 3"):
        opening()
    assert str(e.value).startswith(
        f"too many open files and connections in step 3: this process may have {no_more_files}\n"
    )


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), FileNotFoundError(2, "No such file")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as e, too_many_files_are_said("there"):
        raise error
    assert e.value is error
