"""What a run does beside training: logs, traces, validation, hooks, converters; each through the command."""

import errno
import json
import math
import shutil
import time

import pytest
import torch

from hekaton.cli import main

TINY = [
    "--model.tokenizer", "byte",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 258}',
    "--training.steps", "4", "--training.seq_len", "16", "--training.local_batch_size", "2",
    "--training.mixed_precision_param", "float32", "--activation_checkpoint.mode", "none",
    "--lr_scheduler.warmup_steps", "0", "--metrics.log_freq", "2",
]  # fmt: skip


@pytest.fixture
def train(tmp_path):
    def run(*flags: str) -> None:
        assert main(["train", *TINY, "--job.dump_folder", str(tmp_path), *flags]) == 0

    return run


def test_tensorboard_shows_one_curve_over_a_restart(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ["--metrics.enable_tensorboard", "--checkpoint.enable", "--lr_scheduler.total_steps", "6"]
    train(*flags)
    train(*flags, "--training.steps", "6")
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    losses = events.Scalars("loss")
    assert sorted({event.step for event in losses}) == [1, 2, 4, 5, 6]
    assert all(math.isfinite(event.value) for event in losses)
    assert {"grad_norm", "lr", "tokens_per_second", "tflops", "seconds/data"} <= set(events.Tags()["scalars"])


def scalars(folder, tag):
    """(step, value) of each point that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_the_steps_of_a_resumed_run_once(train, tmp_path):
    flags = ["--metrics.enable_tensorboard", "--checkpoint.enable", "--metrics.log_freq", "1"]
    train(*flags, "--checkpoint.interval", "2", "--optimizer.lr", "1e-3")
    train(*flags, "--checkpoint.load_step", "2", "--optimizer.lr", "5e-4", "--training.steps", "5")
    rates = scalars(tmp_path / "tb", "lr")
    assert [step for step, _ in rates] == [1, 2, 3, 4, 5]
    assert rates[1][1] > 5e-4 >= rates[2][1], "steps 3 and 4 are those of the second run"


def test_event_files_are_in_order_by_name_within_a_second_and_a_clock_ahead_is_said(tmp_path, caplog):
    from hekaton_tensorboard.writer import TensorBoardLogger

    (tmp_path / f"events.out.tfevents.{int(time.time()) + 1}.host.1.0").touch()
    for value in (1.0, 2.0):
        logger = TensorBoardLogger(tmp_path)
        logger.resume(0)
        logger.log(1, {"loss": value})
        logger.close()
    times = [int(path.name.split(".")[3]) for path in tmp_path.iterdir()]
    assert len({*times}) == 3
    assert not caplog.records
    (tmp_path / f"events.out.tfevents.{int(time.time()) + 3600}.host.1.0").touch()
    TensorBoardLogger(tmp_path).resume(0)
    assert "from a clock that is ahead" in caplog.text


def test_tensorboard_shows_the_steps_of_a_run_that_starts_again_once(train, tmp_path):
    flags = ["--metrics.enable_tensorboard", "--metrics.log_freq", "1"]
    train(*flags)
    train(*flags, "--training.steps", "3")
    assert [step for step, _ in scalars(tmp_path / "tb", "loss")] == [1, 2, 3]


def test_a_folder_of_tensorboard_that_cannot_be_written_is_an_error_of_a_new_run(
    tmp_path, capsys, monkeypatch
):
    def refused(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    flags = ["--job.dump_folder", str(tmp_path), "--metrics.enable_tensorboard"]
    assert main(["train", *TINY, *flags]) == 2
    assert f"error: cannot write to '{tmp_path / 'tb'}': Read-only file system" in capsys.readouterr().err


def json_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_several_loggers_show_the_steps_of_a_resumed_run_once(train, tmp_path):
    flags = ["--metrics.loggers", "jsonl, tensorboard", "--checkpoint.enable", "--metrics.log_freq", "1"]
    train(*flags, "--checkpoint.interval", "2")
    train(*flags, "--checkpoint.load_step", "2", "--optimizer.lr", "5e-4")
    written = [(line["step"], pytest.approx(line["lr"])) for line in json_lines(tmp_path)]
    assert [step for step, _ in written] == [1, 2, 3, 4]
    assert scalars(tmp_path / "tb", "lr") == written


FAILING_LOGGERS = """
import time
import types
from hekaton.contributions import Logger, Ref, hookimpl

HEKATON_API = ">=1,<2"

def fail(step, *metrics):
    if step >= 2:
        raise ConnectionError(f"nobody answers at step {step}")

def at_log(section, folder):
    return types.SimpleNamespace(log=fail, close=lambda: fail(9))

def at_close(section, folder):
    return types.SimpleNamespace(log=lambda step, metrics: None, close=lambda: fail(9))

def at_resume(section, folder):
    return types.SimpleNamespace(resume=lambda step: fail(7), log=fail, close=lambda: None)

def hangs(section, folder):
    return types.SimpleNamespace(
        log=lambda step, metrics: time.sleep(100 * (step == 3)), close=lambda: print("closed")
    )

def hangs_at_start(section, folder):
    time.sleep(100)

def hangs_at_close(section, folder):
    return types.SimpleNamespace(log=lambda step, metrics: None, close=lambda: time.sleep(100))

@hookimpl
def hekaton_loggers():
    names = ("at_log", "at_close", "at_resume", "hangs", "hangs_at_start", "hangs_at_close")
    return [Logger(name, build=Ref(f"failing_loggers:{name}")) for name in names]
"""


def test_loggers_that_fail_are_reported_once_and_the_run_goes_on(train, tmp_path, monkeypatch, capsys):
    (tmp_path / "failing_loggers.py").write_text(FAILING_LOGGERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    loggers = "hangs_at_start, hangs_at_close, at_resume, at_log, hangs, jsonl, at_close"
    run = ["--plugins.load", "failing_loggers", "--metrics.loggers", loggers, "--metrics.log_freq", "1"]
    train(*run, "--fault.logger_seconds", "0.3")
    assert [line["step"] for line in json_lines(tmp_path)] == [1, 2, 3, 4]
    said = capsys.readouterr()
    assert "closed" not in said.out
    told = [line.split("  ", 1)[1] for line in said.err.splitlines() if "logger '" in line]
    left_out = "and is left out from here on: ConnectionError: nobody answers at step"
    assert told == [
        "logger 'hangs_at_start' is left out: no answer for 0.3 s (fault.logger_seconds)",
        f"logger 'at_resume' failed when the run started {left_out} 7",
        f"logger 'at_log' failed at step 2 {left_out} 2",
        "logger 'hangs' failed at step 3 and is left out from here on: no answer for 0.3 s (fault.logger_seconds)",
        "logger 'at_close' failed to close: ConnectionError: nobody answers at step 9",
        "logger 'hangs_at_close' failed to close: no answer for 0.3 s (fault.logger_seconds)",
    ]


NO_ANSWER = """
from hekaton.contributions import Logger, Ref, hookimpl

def build(section, folder):
    raise ConnectionRefusedError(111, "nobody answers")

@hookimpl
def hekaton_loggers():
    return [Logger("away", build=Ref("no_answer:build"))]
"""


def test_a_logger_that_is_gone_when_a_run_resumes_does_not_stop_it(tmp_path, monkeypatch, capsys):
    """At the first start it is an error: whoever starts a run can cure it. One that starts again before it has saved
    anything goes on, too."""
    (tmp_path / "no_answer.py").write_text(NO_ANSWER)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = [
        "train",
        *TINY,
        "--job.dump_folder",
        str(tmp_path),
        "--checkpoint.enable",
        "--lr_scheduler.total_steps",
        "6",
    ]
    away = ["--plugins.load", "no_answer", "--metrics.loggers", "away, jsonl"]
    assert main([*run, *away]) == 2
    said = capsys.readouterr().err
    assert "error: logger 'away' cannot be opened: ConnectionRefusedError: [Errno 111] nobody answers" in said
    assert main(run) == 0
    capsys.readouterr()
    assert main([*run, *away, "--training.steps", "6", "--metrics.log_freq", "1"]) == 0
    said = capsys.readouterr().err
    assert said.count("logger 'away' is left out: logger 'away' cannot be opened:") == 1
    assert [line["step"] for line in json_lines(tmp_path)][-2:] == [5, 6]
    shutil.rmtree(tmp_path / "checkpoint")  # as of a run that ended before its first save
    assert main([*run, *away]) == 0
    assert capsys.readouterr().err.count("logger 'away' is left out: ") == 1


def test_profiler_writes_a_trace(train, tmp_path):
    train(
        "--profiling.enable_profiling", "--profiling.profile_freq", "2", "--profiling.profiler_warmup", "1",
        "--profiling.profiler_active", "1",
    )  # fmt: skip
    traces = sorted((tmp_path / "profile_traces").glob("step-*/rank-0.json"))
    assert [trace.parent.name for trace in traces] == ["step-2", "step-4"]
    names = {event.get("name") for event in json.loads(traces[0].read_text())["traceEvents"]}
    assert "aten::mm" in names


PLUGIN = '''
import json
import time
from pathlib import Path

from hekaton.contributions import Converter, Ref, hookimpl
from torch import nn

seen = {"steps": [], "after_step": 0}


class Freeze:
    """Freezes every norm."""

    def convert(self, draft):
        for module in draft.model.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.requires_grad_(False)
        return draft

    def after_step(self, model_parts):
        seen["after_step"] += 1
        seen["frozen"] = sum(not p.requires_grad for part in model_parts for p in part.parameters())


def build(section, dims):
    seen["world_size"] = dims.world_size
    return Freeze()


@hookimpl
def hekaton_converters():
    return [Converter("freeze_norms", build=Ref("observer:build"))]


@hookimpl
def hekaton_run_started(config, step):
    seen["started"] = [config.model.name, step]


@hookimpl
def hekaton_step_ended(step, metrics):
    seen["steps"].append([step, sorted(metrics)[:1]])


@hookimpl
def hekaton_checkpoint_saved(step, folder):
    seen["saved"] = [step, folder.name]


@hookimpl
def hekaton_run_ended(step, error):
    seen["ended"] = [step, error is None]
    Path(__file__).with_suffix(".json").write_text(json.dumps(seen))
'''


def test_lifecycle_hooks_and_converters_are_called(train, tmp_path):
    plugin = tmp_path / "observer.py"
    plugin.write_text(PLUGIN)
    train(
        "--plugins.load", str(plugin), "--model.converters", "freeze_norms", "--checkpoint.enable",
        "--model.print_after_conversion",
    )  # fmt: skip
    seen = json.loads(plugin.with_suffix(".json").read_text())
    assert seen == {
        "world_size": 1,
        "started": ["llama3", 0],
        "steps": [[1, ["data_wait_share"]], [2, ["data_wait_share"]], [3, []], [4, ["data_wait_share"]]],
        "after_step": 5,  # before the first step too
        "frozen": 5,  # two in each of two layers, and the last
        "saved": [4, "step-4"],
        "ended": [4, True],
    }


def test_validation_is_the_mean_loss_over_the_other_data(train, tmp_path, capsys):
    """With a learning rate of next to nothing, validating on the training data gives the training loss."""
    data = tmp_path / "data.jsonl"
    # With its begin and end marks each document is one row exactly, in training as in validation.
    data.write_text("".join(json.dumps({"text": f"{i}" * 46}) + "\n" for i in range(6)))
    train(
        "--training.dataset", "text", "--training.dataset_path", str(data), "--training.steps", "1",
        "--optimizer.lr", "1e-12", "--training.local_batch_size", "6", "--training.seq_len", "48",
        "--validation.enable", "--validation.dataset", "text", "--validation.dataset_path", str(data),
        "--validation.local_batch_size", "6", "--validation.seq_len", "48", "--validation.freq", "1",
    )  # fmt: skip
    shown = capsys.readouterr().err
    trained = float(shown.split("step      1  loss ")[1].split()[0])
    validated = float(shown.split("validation loss ")[1].split()[0])
    assert validated == pytest.approx(trained, abs=1.01e-4)  # as printed


SET = """
[[validation.sets]]
name = "{name}"
dataset = "text"
dataset_path = "{path}"
rows = {rows}
"""


def test_sets_have_metrics_of_their_own(tmp_path, capsys):
    """With a learning rate of next to nothing, the loss of a set is that of training on its documents."""
    sizes = {"short": [5] * 6 + [0], "mixed": [1, 30, 14, 14, 9, 40, 40]}
    config = ""
    for number, (name, lengths) in enumerate(sizes.items()):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"text": f"{number}" * length}) + "\n" for length in lengths))
        config += SET.format(name=name, path=data, rows=2 + 3 * number)
    # No more rows than documents are made: the last set is the one before it.
    config += SET.format(name="each", path=data, rows=7) + SET.format(name="most", path=data, rows=2**20)
    (tmp_path / "sets.toml").write_text(config)
    flags = [
        "--job.dump_folder", str(tmp_path / "run"), "--training.dataset", "text", "--training.dataset_path",
        str(tmp_path / "short.jsonl"), "--training.steps", "1", "--optimizer.lr", "1e-12",
        "--training.local_batch_size", "2", "--training.seq_len", "21", "--validation.enable",
        "--validation.local_batch_size", "3", "--validation.seq_len", "21", "--metrics.loggers", "jsonl",
    ]  # fmt: skip
    assert main(["train", str(tmp_path / "sets.toml"), *TINY, *flags]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (trained,), (metrics,) = (
        [line for line in lines if name in line] for name in ("loss", "validation/short/loss")
    )
    assert metrics["validation/short/loss"] == pytest.approx(trained["loss"], rel=1e-6)
    assert metrics["validation/most/loss"] == metrics["validation/each/loss"]
    for name, lengths in sizes.items():
        loss = metrics[f"validation/{name}/loss"]
        assert metrics[f"validation/{name}/perplexity"] == pytest.approx(math.exp(loss))
        # A document of n bytes has n + 2 tokens with its marks, of which the first is no target.
        nats = loss * sum(length + 1 for length in lengths if length)
        expected = nats / math.log(2) / sum(lengths)
        assert metrics[f"validation/{name}/bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    shown = capsys.readouterr().err
    assert f"validation mixed {metrics['validation/mixed/loss']:.4f}" in shown
    # Two rows read four documents or more ahead, of seven: one of them is the empty one.
    assert "documents without a token, or a target, that were skipped: " in shown


def test_deterministic_mode_is_set(train):
    try:
        train("--debug.deterministic")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_cpu_offload_and_mixed_precision_train_on_one_process(train, tmp_path):
    train(
        "--training.enable_cpu_offload", "--training.mixed_precision_param", "bfloat16", "--checkpoint.enable"
    )
    assert (tmp_path / "checkpoint" / "step-4" / "manifest.json").exists()


def test_resolved_configuration_is_written_beside_the_run(train, tmp_path):
    train("--job.save_config_file", "resolved.toml", "--job.print_config")
    text = (tmp_path / "resolved.toml").read_text()
    assert "seq_len = 16" in text
    assert main(["config", "check", str(tmp_path / "resolved.toml")]) == 0


def test_load_only_leaves_all_as_it_is(train, tmp_path):
    """Beside the run that writes there, and from a disk that can only be read."""
    train("--checkpoint.enable")

    def times() -> dict:
        return {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}

    before = times()
    load_only = ["--checkpoint.enable", "--checkpoint.load_only", "--training.steps", "6"]
    train(*load_only, "--checkpoint.interval", "1", "--optimizer.eps", "1e-7")  # a change that history keeps
    assert times() == before
    train(*load_only, "--job.save_config_file", "mine.toml")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"accounting.jsonl", "checkpoint", "config.toml", "metrics.jsonl", "mine.toml"}


def test_the_first_step_is_saved_when_asked_for(train, tmp_path):
    train("--checkpoint.enable", "--checkpoint.enable_first_step_checkpoint")
    assert sorted(step.name for step in (tmp_path / "checkpoint").iterdir()) == ["step-1", "step-4"]


def test_excluded_parts_are_reset(train, tmp_path, caplog):
    """Without the schedule's part the rate is again that of the first step; the step goes on."""
    flags = ["--checkpoint.enable", "--lr_scheduler.warmup_steps", "4", "--lr_scheduler.total_steps", "8"]
    train(*flags, "--metrics.enable_tensorboard", "--metrics.log_freq", "1")
    train(
        *flags, "--metrics.enable_tensorboard", "--metrics.log_freq", "1", "--training.steps", "5",
        "--checkpoint.exclude_from_loading", "lr_scheduler,data_loader,optimizer",
    )  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    rates = {event.step: event.value for event in events.Scalars("lr")}
    assert rates[5] == pytest.approx(rates[1])
    assert rates[4] == pytest.approx(4 * rates[1])


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_reported(tmp_path, capsys, where):
    (tmp_path / "file").write_text("")
    assert main(["train", *TINY, "--job.dump_folder", str(tmp_path / where)]) == 2
    message = capsys.readouterr().err
    assert "cannot write to" in message
    assert "choose another job.dump_folder" in message


def test_log_rank_must_be_ranks(train, monkeypatch, capsys):
    monkeypatch.setenv("LOG_RANK", "all")
    assert main(["train", *TINY]) == 2
    assert "LOG_RANK must be ranks separated by commas, not 'all'" in capsys.readouterr().err
