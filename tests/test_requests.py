"""Files in the folder of a run ask it to save, to stop and to write a trace."""

import json
import pickle
import resource

import torch

from hekaton.config.sections import ProfilingSection
from hekaton.profiling import SNAPSHOT_ENTRIES, Profiler
from hekaton.testing import run_command

PLUGIN = """
from pathlib import Path

import hekaton.requests
from hekaton.contributions import hookimpl

HEKATON_API = ">=1,<2"
hekaton.requests.EVERY = 0.0


@hookimpl
def hekaton_step_ended(step, metrics, control):
    names = {2: ["save"], 3: ["profile"], 4: ["memory"], 6: ["stop", "profile"]}
    for name in names.get(step, ()):
        Path("out", f"{name}.request").touch()
"""
RUN = [
    "train", "--model.name", "llama3", "--model.tokenizer", "byte", "--training.steps", "100",
    "--training.seq_len", "16", "--training.local_batch_size", "1", "--training.mixed_precision_param", "float32",
    "--activation_checkpoint.mode", "none", "--lr_scheduler.warmup_steps", "0", "--checkpoint.enable",
    "--checkpoint.interval", "50", "--model.overrides.dim", "16", "--model.overrides.n_layers", "1",
    "--model.overrides.n_heads", "2", "--model.overrides.n_kv_heads", "1", "--model.overrides.hidden_dim", "32",
    "--job.dump_folder", "out", "--plugins.load", "asks.py",
]  # fmt: skip


def test_a_run_saves_traces_and_stops_on_request(tmp_path):
    (tmp_path / "asks.py").write_text(PLUGIN)
    out = tmp_path / "out"
    out.mkdir()
    (out / "stop.request").touch()
    done = run_command(*RUN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stop.request is from before this start: removed" in done.stderr
    assert "saving step 2: save.request" in done.stderr
    assert "stopping after step 6: stop.request" in done.stderr
    assert sorted(step.name for step in out.glob("checkpoint/step-*")) == ["step-2", "step-6"]
    assert [*out.glob("*.request")] == []
    (trace,) = out.glob("profile_traces/*/*.json")
    assert trace.relative_to(out / "profile_traces").as_posix() == "step-4/rank-0.json"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::embedding" in names
    assert "aten::mm" in done.stderr  # among the slowest operators
    assert "Self CPU time total" in done.stderr
    assert done.stderr.count("no snapshot on request: only the memory of CUDA devices is recorded") == 1
    assert done.stderr.count("no trace on request: there was no next step") == 1


def test_a_trace_that_cannot_be_written_is_reported_and_leaves_nothing(tmp_path, caplog):
    profiler = Profiler(ProfilingSection(), tmp_path, rank=0, step=0)

    def trace(step):
        profiler.trace_next_step()
        torch.ones(2).exp()
        profiler.step(step)
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    folder = tmp_path / "profile_traces"
    folder.write_text("")
    assert trace(1) == [f"step 1: cannot write '{folder}/step-1/rank-0.json': Not a directory"]
    folder.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        (said,) = trace(2)[1:]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert said == f"step 2: cannot write '{folder}/step-2/rank-0.json': only a part of it could be written"
    assert [*folder.rglob("*.json*")] == []
    assert len(trace(3)) == 2
    assert [path.parent.name for path in folder.rglob("*.json*")] == ["step-3"]


def test_a_snapshot_on_request_is_of_one_step(tmp_path, monkeypatch):
    """With a device that is not there: what it would be asked."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **given: asked.append(given))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"segments": []})
    profiler = Profiler(ProfilingSection(), tmp_path, rank=0, step=7)
    profiler.step(8)
    profiler.record_next_step()
    profiler.step(9)
    profiler.step(10)
    (snapshot,) = tmp_path.glob("memory_snapshot/*/*")
    assert snapshot.relative_to(tmp_path / "memory_snapshot").as_posix() == "step-9/rank-0.pickle"
    assert pickle.loads(snapshot.read_bytes()) == {"segments": []}
    assert asked == [{"max_entries": SNAPSHOT_ENTRIES}, {"enabled": None}]


def test_what_a_run_cannot_remove_it_does_not_carry_out_and_goes_on_looking_for_others(tmp_path):
    names = PLUGIN.index("    names = ")
    folders = """    save, stop = (Path("out", f"{name}.request") for name in ("save", "stop"))
    if step == 2:
        save.mkdir()
        stop.mkdir()
    if step == 4:
        save.rmdir()
    if step == 5:
        save.touch()
"""
    (tmp_path / "asks.py").write_text(PLUGIN[:names] + folders)
    done = run_command(*RUN, "--training.steps", "6", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("save", "stop"):
        assert done.stderr.count(f"{name}.request cannot be removed, and is not carried out: ") == 1
    assert "saving step 5: save.request" in done.stderr
    assert "stopping" not in done.stderr
