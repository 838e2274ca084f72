"""metrics.jsonl: what a resumed run keeps of it, and what it never writes."""

import errno
import json
import math
import resource
from contextlib import contextmanager

import pytest

from hekaton.accounting import Accounts, read_account
from hekaton.checkpoint.disk.folders import write_whole
from hekaton.jsonl import NAME, build


def lines(folder):
    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / NAME).read_text().splitlines()]


def test_a_resumed_run_keeps_the_lines_up_to_its_step(tmp_path):
    logger = build(None, tmp_path)
    logger.resume(0)
    for step in range(1, 6):
        logger.log(step, {"loss": 1.0 / step})
    with (tmp_path / NAME).open("a") as stream:
        stream.write('{"step": 2, "lo')  # a process was killed here
    logger = build(None, tmp_path)
    logger.resume(3)
    logger.log(4, {"loss": 8.0})
    logger.log(4, {"validation_loss": 9.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 4]
    assert lines(tmp_path)[3]["loss"] == 8.0
    assert lines(tmp_path)[4]["validation_loss"] == 9.0


@pytest.mark.parametrize("folder", [".", "rank_0"])
@pytest.mark.parametrize("checkpoints", ["checkpoint", "of_a_month"])
def test_a_run_that_begins_anew_keeps_the_lines_of_the_run_that_has_its_steps_there(
    tmp_path, folder, checkpoints
):
    """As one with ``checkpoint.enable = false``, to try something, in the folder of a long run."""
    metrics = tmp_path / folder
    for start in range(3):
        logger = build(None, metrics)
        logger.resume(0)
        logger.log(1, {"loss": float(start)})
        (tmp_path / checkpoints / f"step-{start}").mkdir(parents=True)
    kept = {path.name: json.loads(path.read_text())["loss"] for path in metrics.glob("*.jsonl")}
    assert kept == {"metrics.1.jsonl": 1.0, NAME: 2.0}, "a checkpoint of the initial weights is no run"
    build(None, metrics).resume(1)
    assert len(lines(metrics)) == 1


def test_every_line_is_json(tmp_path):
    build(None, tmp_path).log(1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.5})
    (line,) = lines(tmp_path)
    assert (line["loss"], line["grad_norm"], line["lr"]) == (None, None, 0.5)


def test_what_a_link_points_to_is_not_written(tmp_path):
    other = tmp_path / "other"
    other.write_text("precious\n")
    (tmp_path / NAME).symlink_to(other)
    with pytest.raises(OSError, match=NAME):
        build(None, tmp_path).log(1, {"loss": 1.0})
    assert other.read_text() == "precious\n"


@contextmanager
def no_file_beyond(size):
    """The process cannot make a file longer than ``size`` bytes, as on a disk that is full: what fits is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_line_of_which_only_a_part_fits_is_an_error(tmp_path):
    logger = build(None, tmp_path)
    logger.log(1, {"loss": 1.0})
    with no_file_beyond((tmp_path / NAME).stat().st_size + 10), pytest.raises(OSError) as caught:
        logger.log(2, {"loss": 1.0})
    assert caught.value.errno == errno.ENOSPC


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path):
    first = Accounts(tmp_path, writes=True)
    first.write(3, resumed=True)
    with no_file_beyond((tmp_path / "accounting.jsonl").stat().st_size + 10):
        first.write(5)
    Accounts(tmp_path, writes=True).write(3, resumed=True)
    account = read_account(tmp_path)
    assert (account.starts, account.step) == (2, 3)
    assert sum(account.seconds.values()) == pytest.approx(account.total, abs=1e-3)


def test_a_disk_that_is_full_keeps_the_file_and_no_part_of_a_new_one(tmp_path):
    logger = build(None, tmp_path)
    for step in range(1, 6):
        logger.log(step, {"loss": 1.0})
    before = (tmp_path / NAME).read_bytes()
    with no_file_beyond(10):
        with pytest.raises(OSError):
            logger.resume(3)
        with pytest.raises(OSError):
            write_whole(tmp_path / "config.toml", bytes(100))
    assert [one.name for one in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == before
