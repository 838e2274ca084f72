"""Runs of Weights & Biases offline, read as LevelDB logs of its own messages, and what is asked of it when a run resumes."""

import json
import struct

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from hekaton.external_runs import ExternalRun
from hekaton_wandb.logger import build, continued
from hekaton_wandb.section import WandbSection


def test_a_run_that_resumes_after_the_last_logged_step_is_the_same():
    before = ExternalRun("abc", 10, "mine")
    expected = before, {"id": "abc", "resume": "allow"}
    assert continued(before, 14, offline=True, group="") == expected
    assert continued(before, 10, offline=False, group="") == expected


def test_a_run_that_resumes_before_the_last_logged_step_is_rewound_or_new():
    before = ExternalRun("abc", 10)
    online = continued(before, 8, offline=False, group="")
    assert online == (ExternalRun("abc", 8), {"resume_from": "abc?_step=8"})
    new, options = continued(before, 8, offline=True, group="")
    assert new.id != "abc"
    assert (new.group, options) == ("abc", {"id": new.id})


BLOCK, FILE_HEADER, HEADER = 32768, 7, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages(data):
    """The messages of a file: a header of its own, then the records of a LevelDB log
    (https://github.com/google/leveldb/blob/main/doc/log_format.md)."""
    at, whole = FILE_HEADER, b""
    while at + HEADER.size <= len(data):
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(data, at)
        at += HEADER.size
        whole += data[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
        assert kind in (FULL, FIRST, MIDDLE, LAST)


def offline_runs(folder):
    """(run id, configuration, [(step, loss)]) of each file, oldest first."""
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        id, configuration, curve = "", {}, []
        for record in messages(path.read_bytes()):
            if record.HasField("run"):
                id = record.run.run_id
                configuration |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                items = {
                    item.key or ".".join(item.nested_key): item.value_json for item in record.history.item
                }
                curve.append((record.history.step.num, json.loads(items["loss"])))
        found.append((id, configuration, curve))
    return found


@pytest.mark.slow
def test_offline_runs_hold_each_step_once(tmp_path):
    (tmp_path / "config.toml").write_text("[optimizer]\nlr = 0.25\n")
    for resume, steps, value in [(0, [1, 2], 3.0), (2, [3, 4], 2.0), (3, [4], 1.0)]:
        logger = build(WandbSection(mode="offline", project="tests"), tmp_path)
        logger.resume(resume)
        for step in steps:
            logger.log(step, {"loss": value})
        logger.close()
    wandb.teardown()  # until then, as at the end of a process, its service may still be writing
    first, second, third = offline_runs(tmp_path)
    assert first[0] == second[0] != third[0]
    assert [one[2] for one in (first, second, third)] == [
        [(1, 3.0), (2, 3.0)],
        [(3, 2.0), (4, 2.0)],
        [(4, 1.0)],
    ]
    assert first[1]["optimizer"] == {"lr": 0.25}
