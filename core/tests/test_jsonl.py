"""metrics.jsonl: what a resumed run keeps of it, and what it never writes."""

import json
import math

import pytest

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
