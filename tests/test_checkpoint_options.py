"""What [checkpoint] can be asked for in a run, through the command; weights are compared by their bits."""

import json
import os
import pickle
import re
import shutil
import sys

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from hekaton.cli import main

TINY = [
    "--model.tokenizer", "byte",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 258}',
    "--training.steps", "4", "--training.seq_len", "16", "--training.local_batch_size", "2",
    "--training.mixed_precision_param", "float32", "--activation_checkpoint.mode", "none",
    "--lr_scheduler.warmup_steps", "0", "--lr_scheduler.total_steps", "8", "--checkpoint.enable",
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def train(tmp_path, capsys):
    """``train("name", *flags)`` trains in ``tmp_path/name``, and returns what the run said."""

    def run(name, *flags, status=0):
        capsys.readouterr()
        assert main(["train", *TINY, "--job.dump_folder", name, *flags]) == status
        return capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """Runs of four steps, saved every second one."""
    folder = tmp_path_factory.mktemp("base")
    assert main(["train", *TINY, "--job.dump_folder", str(folder), "--checkpoint.interval", "2"]) == 0
    return folder


@pytest.fixture
def base(base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "base")
    return tmp_path / "base" / "checkpoint"


def tensors(step):
    """Everything that torch's own converter finds in a step."""
    dcp_to_torch_save(step, f"{step}.pt")
    return torch.load(f"{step}.pt", weights_only=True)


def model_of(state):
    return {
        key: value
        for key, value in state.items()
        if not key.startswith(("optimizer.", "data_loader.", "rng.")) and isinstance(value, torch.Tensor)
    }


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


def steps(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


# A rate that moves no weight.
UNMOVED = ["--optimizer.lr", "1e-30", "--optimizer.weight_decay", "0", "--training.steps", "1"]


@pytest.mark.parametrize(("path", "step"), [("base/checkpoint/step-2", 2), ("base/checkpoint", 4)])
def test_a_run_starts_with_the_model_of_another(train, base, tmp_path, path, step):
    said = train("new", "--checkpoint.initial_load_path", path, *UNMOVED)
    assert f"started with the model of base/checkpoint/step-{step}" in said
    assert "not loaded: data_loader, optimizer, rng" in said
    new = tensors(tmp_path / "new/checkpoint/step-1")
    assert same(model_of(new), model_of(tensors(base / f"step-{step}")))
    assert new["optimizer.norm.weight.step"] == 1


def test_a_run_resumes_where_another_was(train, base, tmp_path):
    """With everything of the other's second step, the next two steps are the other's."""
    said = train(
        "new", "--checkpoint.initial_load_path", "base/checkpoint/step-2",
        "--checkpoint.no-initial_load_model_only",
    )  # fmt: skip
    assert "started from base/checkpoint/step-2 at step 2" in said
    assert steps(tmp_path / "new/checkpoint") == ["step-4"]
    assert same(tensors(tmp_path / "new/checkpoint/step-4"), tensors(base / "step-4"))
    assert steps(base) == ["step-2", "step-4"], "nothing moves where the weights came from"


def test_the_runs_own_checkpoint_comes_first(train, base, tmp_path):
    flags = ["--checkpoint.initial_load_path", "base/checkpoint/step-2"]
    train("new", *flags, "--training.steps", "1")
    shutil.rmtree(base)
    said = train("new", *flags, "--training.steps", "2")
    assert "resumed at step 1" in said
    assert "started" not in said


def test_a_damaged_step_is_skipped_there_too(train, base):
    shard = base / "step-4" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    said = train("new", "--checkpoint.initial_load_path", "base/checkpoint", "--training.steps", "1")
    assert "skipping checkpoint step-4 in base/checkpoint: __0_0.distcp has" in said
    assert "started with the model of base/checkpoint/step-2" in said
    said = train("named", "--checkpoint.initial_load_path", "base/checkpoint/step-4", status=2)
    assert "the checkpoint base/checkpoint/step-4 cannot be loaded: __0_0.distcp has" in said
    (base / "step-2" / "manifest.json").unlink()
    said = train("none", "--checkpoint.initial_load_path", "base/checkpoint", status=2)
    assert "none of the checkpoints in base/checkpoint can be loaded" in said
    assert "move that folder away" not in said


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "there is no checkpoint folder 'nowhere'"),
        ("base", "'base' is not a checkpoint\n  expected a folder step-N with .metadata, or a folder that"),
    ],
)
def test_a_path_without_a_checkpoint_is_an_error(train, base, path, message):
    assert message in train("new", "--checkpoint.initial_load_path", path, status=2)


@pytest.fixture
def elsewhere(base, tmp_path):
    """The step as another program keeps it: its model among nested optimizer state and pickled counters."""
    import torch.distributed.checkpoint as dcp

    model = model_of(tensors(base / "step-4"))
    state = {
        **model,
        "optimizer": {
            "state": {name: {"exp_avg": torch.zeros_like(value)} for name, value in model.items()},
            "param_groups": [{"lr": 0.1}],
        },
        "train_state": {"step": 4, "ntokens_seen": torch.tensor(128)},
        "dataloader": {"dp_rank_0": pickle.dumps({"sample": 3})},
        "lr_scheduler": {"last_epoch": 4},
    }
    with pytest.warns(UserWarning, match="torch.distributed is disabled"):
        dcp.save(state, checkpoint_id=tmp_path / "elsewhere/step-4")
    return model


def test_a_run_starts_from_an_external_checkpoint(train, elsewhere, tmp_path):
    flags = ["--checkpoint.initial_load_path", "elsewhere/step-4"]
    said = train("new", *flags, *UNMOVED)
    assert (
        "notice: elsewhere/step-4 has no manifest.json: there are no checksums to verify its files with"
        in said
    )
    assert same(model_of(tensors(tmp_path / "new/checkpoint/step-1")), elsewhere)

    said = train("whole", *flags, "--checkpoint.no-initial_load_model_only", status=2)
    assert "the checkpoint elsewhere/step-4 cannot be loaded: it holds the model only" in said

    said = train("wider", *flags, "--model.overrides", '{"dim": 32, "n_layers": 2}', status=2)
    assert "the checkpoint elsewhere/step-4 (external) does not fit this run" in said
    assert "tok_embeddings.weight is (258, 16) in the checkpoint, (2048, 32) here" in said


def test_an_external_checkpoint_runs_no_code_and_is_measured(train, elsewhere, tmp_path):
    flags = ["--checkpoint.initial_load_path", "elsewhere/step-4"]
    shard = tmp_path / "elsewhere/step-4/__0_0.distcp"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    assert re.search(
        r"\.metadata expects [\d,]+ bytes in __0_0\.distcp, which has", train("short", *flags, status=2)
    )
    shard.rename(shard.with_suffix(".away"))
    assert ".metadata points to '__0_0.distcp'" in train("missing", *flags, status=2)

    class Payload:
        def __reduce__(self):
            return os.system, ("touch proof",)

    (tmp_path / "elsewhere/step-4/.metadata").write_bytes(pickle.dumps(Payload()))
    assert ".metadata asks for posix.system, which no tensor needs: refused" in train(
        "hostile", *flags, status=2
    )
    assert not (tmp_path / "proof").exists()


LAST = ["--checkpoint.last_save_model_only", "--checkpoint.interval", "2", "--checkpoint.keep_latest_k", "1"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_last_step_holds_only_the_model(train, base, tmp_path, dtype):
    said = train("new", *LAST, "--checkpoint.export_dtype", dtype)
    assert "GB/s, the model only" in said
    saved = tensors(tmp_path / "new/checkpoint/step-4")
    expected = model_of(tensors(base / "step-4"))
    assert same(saved, {name: value.to(getattr(torch, dtype)) for name, value in expected.items()})
    manifest = json.loads((tmp_path / "new/checkpoint/step-4/manifest.json").read_text())
    assert manifest["parts"] == ["model"]


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_weight_that_the_precision_of_exports_cannot_hold_is_an_error_and_all_is_saved(
    train, tmp_path, mode
):
    """AdamW's first step moves each weight by the rate: norm.weight, which starts at 1, by 100 times 1,000."""
    (tmp_path / "large.toml").write_text(
        "[optimizer]\nlr = 100\nweight_decay = 0\n"
        '[[optimizer.groups]]\nmatch = "norm.weight"\nlr_factor = 1000\n'
        '[[optimizer.groups]]\nmatch = "*"\nlr_factor = 0\n'
    )
    said = train(
        "new", "--job.config_file", "large.toml", *LAST, "--checkpoint.async_mode", mode, "--training.steps", "1",
        "--checkpoint.export_dtype", "float16", status=2,
    )  # fmt: skip
    assert (
        'step 1 cannot be saved in checkpoint.export_dtype = "float16": norm.weight has a value of 1000'
        in said
    )
    assert "and float16 ends at 65504" in said
    saved = tensors(tmp_path / "new/checkpoint/step-1")
    weight = saved["norm.weight"]
    assert weight.dtype == torch.float32
    assert weight.isfinite().all()
    assert weight.abs().max() > 65504
    assert "optimizer" in json.loads((tmp_path / "new/checkpoint/step-1/manifest.json").read_text())["parts"]


def test_a_run_resumes_from_the_newest_step_that_holds_everything(train, base, tmp_path):
    train("new", *LAST)
    folder = tmp_path / "new/checkpoint"
    assert steps(folder) == ["step-2", "step-4"], "the model alone makes no step go from which to go on"
    assert "step 4 of 4 is done already" in train("new", *LAST)

    said = train("new", *LAST, "--training.steps", "6")
    (skipped,) = [line for line in said.splitlines() if "step-4" in line and "skipping" in line]
    assert "it holds the model only, which no run can resume from" in skipped
    assert "resumed at step 2" in said
    assert steps(folder) == ["step-4", "step-6", "superseded"]
    assert steps(folder / "superseded") == ["step-4"]
    assert same(tensors(folder / "step-4"), tensors(base / "step-4")), "steps 3 and 4 are done again"

    said = train("named", "--checkpoint.initial_load_path", "new/checkpoint/step-6", "--training.steps", "1")
    assert "started with the model of new/checkpoint/step-6" in said


def test_with_nothing_but_models_a_run_does_not_start_from_step_0(train, tmp_path):
    train("new", *LAST, "--checkpoint.interval", "9")
    assert steps(tmp_path / "new/checkpoint") == ["step-4"]
    said = train("new", *LAST, "--training.steps", "6", status=2)
    assert "none of the checkpoints in new/checkpoint can be loaded" in said
    assert "step-4: it holds the model only" in said
    said = train("new", "--checkpoint.load_step", "4", "--training.steps", "6", status=2)
    assert "checkpoint step-4 in new/checkpoint cannot be loaded: it holds the model only" in said


def test_load_only_without_a_checkpoint_gives_a_notice(train, tmp_path):
    said = train("new", "--checkpoint.load_only")
    assert "there is no checkpoint to load in new/checkpoint: the run starts from step 0" in said
    assert not (tmp_path / "new/checkpoint").exists()


def test_a_seed_checkpoint_is_the_first_of_its_folder(train, base, tmp_path):
    said = train("base", "--checkpoint.create_seed_checkpoint", status=2)
    assert "a seed checkpoint is the first in its folder, and base/checkpoint has step-4" in said
    train("new", "--checkpoint.create_seed_checkpoint")
    assert steps(tmp_path / "new/checkpoint") == ["step-0"]
    said = train("new", "--debug.seed", "7")
    assert "resumed at step 0" in said


@pytest.mark.parametrize("mode", ["async", "async_with_pinned_mem"])
def test_saved_in_the_background_every_step_is_the_same(train, tmp_path, mode):
    """The weights move right after each save began; on the disk are those of the step."""
    every = ["--checkpoint.interval", "1", "--checkpoint.keep_latest_k", "0"]
    train("whole", *every)
    said = train("new", *every, "--checkpoint.async_mode", mode)
    assert ('"async_with_pinned_mem" is the same as "async" on cpu' in said) == ("pinned" in mode)
    assert said.count("; stalled training ") == 4
    for step in range(1, 5):
        expected = tensors(tmp_path / f"whole/checkpoint/step-{step}")
        assert same(tensors(tmp_path / f"new/checkpoint/step-{step}"), expected)
    assert "step 4 of 4 is done already" in train("new", "--checkpoint.async_mode", mode)


NOTE_TAKER = """
import json
import threading
from pathlib import Path

from hekaton.contributions import hookimpl

seen = []


@hookimpl
def hekaton_step_ended(step, metrics):
    seen.append(["ended", step])


@hookimpl
def hekaton_checkpoint_saved(step, folder):
    assert threading.current_thread() is threading.main_thread()
    assert (folder / "manifest.json").is_file()
    seen.append(["saved", step])


@hookimpl
def hekaton_run_ended(step, error):
    seen.append(["run ended", step, str(error)])
    Path(__file__).with_suffix(".json").write_text(json.dumps(seen))
"""


@pytest.fixture
def observed(tmp_path, monkeypatch):
    """Flags that load a plugin which notes what the run tells it, and what it noted."""
    monkeypatch.delitem(sys.modules, "note_taker", raising=False)
    plugin = tmp_path / "note_taker.py"
    plugin.write_text(NOTE_TAKER)
    return ["--plugins.load", str(plugin)], lambda: json.loads(plugin.with_suffix(".json").read_text())


def test_the_last_save_is_waited_for_and_hooks_are_called_before_the_end(train, observed):
    flags, seen = observed
    train("new", *flags, "--checkpoint.async_mode", "async", "--checkpoint.interval", "3")
    told = seen()
    assert [step for what, step, *_ in told if what == "saved"] == [3, 4]
    assert told.index(["saved", 3]) > told.index(["ended", 3])
    assert told[-2:] == [["saved", 4], ["run ended", 4, "None"]]


@pytest.mark.parametrize("failing", [2, 4], ids=["a step", "the last step"])
def test_an_error_in_the_background_stops_the_run(train, observed, tmp_path, failing):
    """In the way of the step's folder is a file, which appears when the run is under way."""
    flags, seen = observed
    (tmp_path / "note_taker.py").write_text(
        NOTE_TAKER.replace(
            'seen.append(["ended", step])',
            f'seen.append(["ended", step])\n    Path("new/checkpoint/step-{failing}").touch()',
        )
    )
    said = train(
        "new", *flags, "--checkpoint.async_mode", "async", "--checkpoint.interval", "2",
        "--training.steps", "4" if failing == 4 else "400", status=2,
    )  # fmt: skip
    error = f"cannot write the checkpoint new/checkpoint/step-{failing}: File exists"
    assert f"error: {error}" in said
    what, step, cause = seen()[-1]
    assert (what, cause) == ("run ended", error)
    assert step <= 4, "by the next save at the latest"


def test_a_run_that_fails_finishes_the_save(train, observed, tmp_path):
    """What ends the run is a plugin's error in the step after the save."""
    flags, seen = observed
    (tmp_path / "note_taker.py").write_text(
        NOTE_TAKER.replace('seen.append(["ended", step])', 'if step == 3:\n        raise OSError("no more")')
    )
    with pytest.raises(OSError, match="no more"):
        train("new", *flags, "--checkpoint.async_mode", "async", "--checkpoint.interval", "3")
    assert seen() == [["saved", 3], ["run ended", 3, "no more"]]
