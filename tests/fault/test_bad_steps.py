"""Bad steps in whole runs: what is left out is left out, and all else is as in a run without it."""

from __future__ import annotations

import contextlib
import json
import math
from itertools import pairwise

import pytest
import torch

import hekaton.reporting
import hekaton.trainer
from hekaton.accounting import OF_STEPS, add_up, read_lines_of
from hekaton.checkpoint.runs.run_state import RunState
from hekaton.cli import main
from hekaton.config import load
from hekaton.distributed import process_group, this_process
from hekaton.errors import TrainingError
from hekaton.fault import FaultChecks, bad_steps
from hekaton.fault.replay import Replay
from hekaton.trainer import Trainer

RUN = [
    "--model.tokenizer", "byte", "--training.mixed_precision_param", "float32",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}',
    "--training.seq_len", "16", "--training.local_batch_size", "2", "--lr_scheduler.warmup_steps", "3",
    "--activation_checkpoint.mode", "none", "--metrics.log_freq", "1",
    "--lr_scheduler.total_steps", "9", "--checkpoint.enable", "--checkpoint.interval", "2",
]  # fmt: skip
EXPERTS = [
    "--model.name", "deepseek_v3", "--model.tokenizer", "byte", "--training.mixed_precision_param", "float32",
    "--training.seq_len", "16", "--training.local_batch_size", "2", "--activation_checkpoint.mode", "none",
]  # fmt: skip


@pytest.fixture
def poison(monkeypatch):
    """Puts NaN into the gradients of the steps with these numbers, counted as they are computed."""

    def poison(*numbers: int) -> None:
        clip, calls = hekaton.trainer.clip_grad_norm, []

        def poisoned(parameters, *arguments, **named):
            calls.append(1)
            if len(calls) in numbers:
                parameters[0].grad.view(-1)[3] = math.nan
            return clip(parameters, *arguments, **named)

        monkeypatch.setattr(hekaton.trainer, "clip_grad_norm", poisoned)

    return poison


@contextlib.contextmanager
def trainer_of(folder, *flags):
    process = this_process()
    loaded = load([], [*flags, "--job.dump_folder", str(folder)])
    with process_group(process, loaded.config.comm, dump_folder=str(folder)):
        trainer = Trainer(loaded, process)
        with contextlib.closing(trainer.loader):
            yield trainer


def trained(folder, flags, steps, *, unread=(), without_update=()):
    """The weights after some steps that are computed one by one.

    :param unread: numbers of steps before which a batch is read and thrown away, as often as they are named.
    :param without_update: steps whose data is read, and which do nothing else but count.
    """
    with trainer_of(folder, *flags) as trainer:
        for trainer.step in range(1, steps + 1):
            for _ in range(unread.count(trainer.step)):
                trainer.loader.next_step()
            if trainer.step in without_update:
                trainer.loader.next_step()
                trainer.learning_rate.steps_done += 1
            else:
                trainer.train_step()
        return weights_of(trainer)


def weights_of(trainer):
    return {name: value.clone() for name, value in trainer.model_parts[0].state_dict().items()}


def weights_saved(folder, step, flags):
    """Those that a run saved, as another one loads them."""
    with trainer_of(folder, *flags, "--checkpoint.load_step", str(step)) as trainer:
        state = RunState.of(trainer.assembled, trainer.loader, trainer._identity, bad_steps=trainer.bad_steps)
        checkpoints = hekaton.trainer.open_checkpoints(trainer.config, trainer.plugins, state)
        with contextlib.closing(checkpoints):
            assert checkpoints.resume() == step
        return weights_of(trainer)


def kept(folder, step):
    """What a run saved of bad steps."""
    return json.loads((folder / f"checkpoint/step-{step}/manifest.json").read_text())["info"]["bad_steps"]


def is_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(ours[name].equal(theirs[name]) for name in ours)


def run(folder, *flags, steps=6):
    return main(["train", *RUN, *flags, "--training.steps", str(steps), "--job.dump_folder", str(folder)])


def test_a_skipped_step_changes_nothing_but_the_schedule_and_the_data(tmp_path, poison, capsys):
    expected = trained(tmp_path / "reference", RUN, 6, without_update=(3, 4))
    poison(3, 4)
    assert run(tmp_path / "run", "--fault.nonfinite", "skip") == 0
    assert is_equal(weights_saved(tmp_path / "run", 6, RUN), expected)
    said = [line for line in capsys.readouterr().err.splitlines() if "not finite" in line]
    assert [line.split("  ")[1].split(": ")[0] for line in said] == ["step 3", "step 4"]
    lines = [json.loads(line) for line in (tmp_path / "run/skipped_data.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4]
    assert lines[0]["rows"].keys() == {"0", "1"}
    assert [row["to"] for row in lines[0]["rows"].values()] == [
        row["from"] for row in lines[1]["rows"].values()
    ]


def test_a_rollback_is_a_run_without_the_data_in_between(tmp_path, poison):
    expected = trained(tmp_path / "reference", RUN, 6, unread=(3, 3))  # those of the first steps 3 and 4
    poison(4)
    more = [
        "--validation.enable", "--validation.freq", "3", "--validation.steps", "1", "--profiling.enable_profiling",
        "--profiling.profile_freq", "3", "--profiling.profiler_warmup", "1", "--profiling.profiler_active", "1",
    ]  # fmt: skip
    assert run(tmp_path / "run", "--fault.nonfinite", "rollback", "--fault.spike_factor", "100", *more) == 0
    assert is_equal(weights_saved(tmp_path / "run", 6, RUN), expected)
    # Three steps without the bad one, and three more: those after the rollback are steps 3, 4 and 5.
    traces = sorted(path.name for path in (tmp_path / "run/profile_traces").iterdir())
    assert traces == ["step-3", "step-5"]
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in logged if "loss" in line]
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    (line,) = [json.loads(line) for line in (tmp_path / "run/skipped_data.jsonl").read_text().splitlines()]
    assert (line["step"], line["what"].split(",")[0]) == (4, "back to step 2")
    assert kept(tmp_path / "run", 6)["losses"] == [line["loss"] for line in logged]
    assert run(tmp_path / "run", "--fault.nonfinite", "rollback", steps=7) == 0
    assert_each_second_has_one_name(tmp_path / "run")


def assert_each_second_has_one_name(folder):
    """Over a rollback from step 4 to 2, validation, saves and a start that resumes."""
    lines = read_lines_of(folder)
    assert [line["step"] for line in lines if line["resumed"]] == [0, 2, 6]
    for before, line in pairwise(lines):
        assert line["resumed"] or line["began"] == before["ended"]
        assert sum(line["seconds"].values()) == pytest.approx(line["ended"] - line["began"], abs=1e-4)
    account = add_up(lines)
    assert sum(account.seconds.values()) == pytest.approx(account.total, rel=0.01)
    _, rollback, _ = [index for index, line in enumerate(lines) if line["resumed"]]
    lost = [line["seconds"] for line in lines[:rollback] if line["step"] in (3, 4)]
    in_steps = sum(seconds.get(name, 0.0) for seconds in lost for name in OF_STEPS)
    assert account.seconds["lost work"] == pytest.approx(in_steps)
    assert {"start-up", "load", "compile", "compute", "save", "validation", "end"} <= account.seconds.keys()
    assert (account.starts, account.step) == (2, 7)


@pytest.fixture
def computed_wrongly(monkeypatch):
    """Gives the first of the two passes of these steps another gradient, counted as steps are computed."""

    def computed_wrongly(*numbers: int) -> None:
        results, calls = Replay._results, []

        def other(self, losses):
            calls.append(1)
            found = results(self, losses)
            if len(calls) in [2 * number - 1 for number in numbers]:
                name = next(name for name in found if name.startswith("the gradient of "))
                found[name] = found[name] + 1
            return found

        monkeypatch.setattr(Replay, "_results", other)

    return computed_wrongly


@pytest.mark.parametrize(
    ("policy", "without"), [("skip", {"without_update": (4,)}), ("rollback", {"unread": (3, 3)})]
)
def test_a_step_that_is_computed_wrongly_is_a_bad_step(tmp_path, computed_wrongly, capsys, policy, without):
    expected = trained(tmp_path / "reference", RUN, 6, **without)
    computed_wrongly(4)
    assert run(tmp_path / "run", "--fault.nonfinite", policy, "--fault.replay_every", "1") == 0
    assert is_equal(weights_saved(tmp_path / "run", 6, RUN), expected)
    said = next(line for line in capsys.readouterr().err.splitlines() if "computed twice" in line)
    assert "step 4: the first microbatch was computed twice from the same state, with other results: " in said
    assert "the gradient of " in said


def test_a_step_that_is_computed_wrongly_ends_the_run_by_default(tmp_path, computed_wrongly, capsys):
    computed_wrongly(4)
    assert run(tmp_path, "--fault.replay_every", "1") == 2
    assert "error: step 4: the first microbatch was computed twice" in capsys.readouterr().err


def test_steps_that_are_bad_again_and_again_end_the_run(tmp_path, poison, capsys):
    poison(*range(3, 20))
    assert run(tmp_path / "skip", "--fault.nonfinite", "skip", "--fault.bad_steps_in_a_row", "2") == 2
    assert (
        "error: step 5: the gradient norm is not finite (NaN or infinite), after 2 bad"
        in capsys.readouterr().err
    )


def test_rollbacks_to_the_same_step_end_the_run_though_steps_between_are_good(tmp_path, poison, capsys):
    poison(4, 6, 8, 10, 12)  # step 4, again and again, with a good step 3 before it
    flags = ["--fault.nonfinite", "rollback", "--fault.bad_steps_in_a_row", "2"]
    assert run(tmp_path, *flags, steps=8) == 2
    assert (
        "error: step 4: the gradient norm is not finite (NaN or infinite), after 2 bad"
        in capsys.readouterr().err
    )


def test_without_a_step_to_go_back_to_the_run_ends(tmp_path, poison, capsys):
    poison(2)
    assert run(tmp_path, "--fault.nonfinite", "rollback") == 2
    said = capsys.readouterr().err
    assert "error: step 2: the gradient norm is not finite (NaN or infinite), and " in said
    assert "has no step before step 2 to go back to\n  save earlier: checkpoint.interval" in said


def test_a_loss_far_above_the_median_is_a_spike(tmp_path, monkeypatch, capsys):
    """Losses 1 to 5 have the median 3; 9.1 is above three times that, 9 is not."""
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0, 9.0, 10.6, 1.0])  # the median of 1 to 5 and 9 is 3.5
    monkeypatch.setattr(Trainer, "_whole_loss", lambda self, given: next(losses))
    monkeypatch.setattr(Trainer, "_is_good", lambda self, given: True)
    assert run(tmp_path, "--fault.spike_factor", "3", "--fault.spike", "skip", steps=8) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "median" in line]
    assert [
        "step 7: the loss is 10.6, and 3.5 in the median of recent steps: skipped" in line for line in said
    ] == [True]


def test_a_run_that_resumes_knows_recent_losses_and_bad_steps(tmp_path, monkeypatch, capsys):
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0, 16.0, 16.0, 16.0, 16.0])
    monkeypatch.setattr(Trainer, "_whole_loss", lambda self, given: next(losses))
    monkeypatch.setattr(Trainer, "_is_good", lambda self, given: True)
    flags = ["--fault.spike_factor", "3", "--fault.spike", "skip", "--fault.bad_steps_in_a_row", "2"]
    assert run(tmp_path, *flags, steps=6) == 0
    assert run(tmp_path, *flags, steps=9) == 2
    assert "error: step 8: the loss is 16, and 3 in the median of recent steps, after 2 bad steps" in (
        capsys.readouterr().err
    )


class Ended(BaseException):
    """In place of the end of the process."""


def end_here(reporter, step):
    raise Ended


def test_steps_after_the_one_that_a_run_goes_back_to_are_not_resumed_from(tmp_path, monkeypatch):
    """Replicas were equal after step 3; step 4 was saved, and that they had drifted is found after step 5.
    Then the process ends; that they were equal after step 2 is known at the next start."""

    def after_step(checks, step):
        if (tmp_path / "checkpoint/superseded").exists():
            return TrainingError("step 3: replicas differ") if step == 3 else None
        checks.equal_at = step if step < 4 else checks.equal_at
        return TrainingError("step 5: replicas differ") if step == 5 else None

    monkeypatch.setattr(FaultChecks, "after_step", after_step)
    monkeypatch.setattr(hekaton.reporting.Reporter, "go_back", end_here)
    for _ in range(2):
        with pytest.raises(Ended):
            run(tmp_path, "--fault.nonfinite", "rollback")
        assert sorted(path.name for path in (tmp_path / "checkpoint").glob("s*")) == ["step-2", "superseded"]


def test_what_is_decided_on_the_device_is_the_same_one_step_later(tmp_path, poison, monkeypatch):
    """A CPU's fused optimizer takes the place of CUDA's; the experts' balance and counts are buffers."""
    monkeypatch.setattr(
        bad_steps, "decides_on_device", lambda device, those: bad_steps.takes_found_inf(those)
    )
    flags = [*EXPERTS, "--fault.nonfinite", "skip"]
    poison(2)
    with trainer_of(tmp_path, *flags) as trainer:
        for trainer.step in (1, 2, 3):
            old = weights_of(trainer)
            buffers = [one.clone() for one in trainer.model_parts[0].buffers()]
            trainer.train_step()
            unchanged = all(map(torch.equal, buffers, trainer.model_parts[0].buffers()))
            assert (is_equal(weights_of(trainer), old), unchanged) == (
                (True,) * 2 if trainer.step == 2 else (False,) * 2
            )
            assert (tmp_path / bad_steps.FILE).exists() == (trainer.step == 3)
        (state, *_) = trainer.optimizers[0].state.values()
        assert state["step"].item() == 2


def test_an_end_that_is_learned_of_later_comes_before_a_save(tmp_path, poison, monkeypatch, capsys):
    monkeypatch.setattr(
        bad_steps, "decides_on_device", lambda device, those: bad_steps.takes_found_inf(those)
    )
    poison(4)
    assert run(tmp_path, "--metrics.log_freq", "100") == 2
    assert "error: step 4: the gradient norm is not finite" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoint").glob("step-*")] == ["step-2"]


def test_a_rollback_needs_checkpoints(tmp_path, capsys):
    assert run(tmp_path, "--checkpoint.enable", "false", "--fault.nonfinite", "rollback") == 2
    assert 'fault.nonfinite = "rollback" needs checkpoints that this run saves' in capsys.readouterr().err
