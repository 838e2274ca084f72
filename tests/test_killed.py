"""Runs that are killed, and runs that share a folder: what the next start does, and what it says."""

import json
import re
from pathlib import Path

import pytest

from hekaton.cli import main
from hekaton.testing import run_processes, start_function

SCRIPT = Path(__file__).with_name("killed_while_training.py")
TINY = [
    "--model.tokenizer", "byte",
    "--model.overrides", '{"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 258}',
    "--training.seq_len", "16", "--training.local_batch_size", "1", "--lr_scheduler.total_steps", "8",
    "--checkpoint.enable", "--checkpoint.interval", "1",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_killed_at_twenty_moments_a_run_ends_as_if_it_had_not_been(tmp_path):
    (done,) = run_processes(SCRIPT, "run", processes=1, timeout=200, root=str(tmp_path))
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == 20
    resumed = []
    for same, said in outcomes:
        assert same, said
        assert re.search(
            r"the run that wrote here \(process \d+ on .*\) has ended: taking over its lock", said
        )
        found = re.search(r"resumed at step (\d)", said)
        resumed.append(int(found[1]) if found else 0)
    assert resumed == sorted(resumed)
    assert set(resumed) == {0, 1, 2, 3, 4}


def test_a_second_run_on_a_folder_is_refused_before_it_writes(tmp_path, tmp_path_factory, capsys):
    end = tmp_path_factory.mktemp("other") / "end"
    with start_function(SCRIPT, "lock", folder=str(tmp_path / "checkpoint"), until=str(end)) as other:
        other.wait_for("locked\n")
        flags = [*TINY, "--job.dump_folder", str(tmp_path)]
        assert main(["train", *flags, "--training.steps", "1"]) == 2
        said = capsys.readouterr().err
        assert f"error: the checkpoint folder {tmp_path}/checkpoint is in use by another run: " in said
        assert f"process {other.pid} on " in said
        without = ["--job.dump_folder", str(tmp_path), "--checkpoint.enable", "false"]
        assert main(["train", *TINY, *without, "--training.steps", "1"]) == 2
        assert "is in use by another run: " in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
        assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["lock.json"]
        assert main(["train", *flags, "--training.steps", "1", "--checkpoint.load_only"]) == 0
        end.touch()
        assert other.wait(60) == 0
    assert main(["train", *flags, "--training.steps", "1"]) == 0


def test_a_run_keeps_its_checkpoints_behind_a_url(tmp_path, capsys):
    import fsspec

    flags = [*TINY, "--job.dump_folder", str(tmp_path), "--checkpoint.folder", "memory://run/checkpoint"]
    assert main(["train", *flags, "--training.steps", "2"]) == 0
    assert main(["train", *flags, "--training.steps", "3"]) == 0
    assert "resumed at step 2" in capsys.readouterr().err
    start = ["--checkpoint.initial_load_path", "memory://run/checkpoint/step-2"]
    assert main(["train", *flags, *start, "--checkpoint.folder", "other", "--training.steps", "1"]) == 0
    assert "started with the model of memory://run/checkpoint/step-2" in capsys.readouterr().err
    store = fsspec.filesystem("memory")
    assert [path.rpartition("/")[2] for path in store.ls("/run/checkpoint", detail=False)] == [
        "step-1", "step-2", "step-3",
    ]  # fmt: skip
    store.rm("/run", recursive=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "accounting.jsonl", "config.toml", "metrics.jsonl", "other",
    ]  # fmt: skip
    assert main(["train", *flags, "--checkpoint.folder", "s3b://bucket"]) == 2
    said = capsys.readouterr().err
    assert "error: checkpoint.folder = 's3b://bucket': fsspec knows no file system 's3b'" in said
    assert "did you mean 's3'?" in said
