"""A run is exact: the same twice, the same when resumed, the same on another number of processes."""

import json
from pathlib import Path

import pytest
import torch

from hekaton.testing.distributed import run_processes

SCRIPT = Path(__file__).with_name("training_on_processes.py")
FLAGS = [
    "--model.name", "llama3", "--model.flavor", "debugmodel",
    "--model.overrides", '{"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48}',
    "--training.dataset", "python_stdlib", "--training.seq_len", "48", "--training.local_batch_size", "2",
    "--training.global_batch_size", "8", "--training.steps", "8",
    "--training.mixed_precision_param", "float32",
    "--lr_scheduler.warmup_steps", "2", "--metrics.log_freq", "3", "--checkpoint.enable",
    "--checkpoint.interval", "3",
]  # fmt: skip


class Run:
    """What a run wrote down."""

    def __init__(self, folder: Path, name: str, *flags: str, processes: int = 1) -> None:
        result = folder / f"{name}.pt"
        run_processes(
            SCRIPT, "train", processes=processes, timeout=100,
            flags=[*FLAGS, "--job.dump_folder", str(folder / "run"), *flags], result=str(result),
        )  # fmt: skip
        written = torch.load(result, weights_only=True)
        self.losses, self.tokens = written["losses"], written["tokens"]
        self.initial, self.final = written["initial"], written["final"]
        self.messages = json.loads(result.with_suffix(".json").read_text())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Eight steps without interruption, on one process."""
    return Run(tmp_path_factory.mktemp("whole"), "whole")


def test_losses_are_of_every_step_and_fall(whole, tmp_path):
    assert list(whole.losses) == list(range(1, 9))
    fast = Run(tmp_path, "fast", "--optimizer.lr", "1e-2")
    assert fast.losses[8] < fast.losses[1] - 0.2


def test_a_second_run_is_bit_identical(whole, tmp_path):
    again = Run(tmp_path, "again")
    assert again.losses == whole.losses
    assert same(again.final, whole.final)


def test_another_seed_is_another_run(whole, tmp_path):
    other = Run(tmp_path, "other", "--debug.seed", "1", "--training.steps", "1")
    assert other.losses[1] != whole.losses[1]
    assert not torch.equal(other.tokens[1], whole.tokens[1])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_resuming_is_bit_identical(whole, tmp_path, workers):
    flags = ["--training.dataloader.num_workers", workers, "--lr_scheduler.total_steps", "8"]
    first = Run(tmp_path, "first", "--training.steps", "5", *flags)
    assert list(first.losses) == [1, 2, 3, 4, 5]
    second = Run(tmp_path, "second", *flags)
    assert "resumed at step 5" in second.messages
    assert list(second.losses) == [6, 7, 8]
    assert first.losses | second.losses == whole.losses
    assert same(second.final, whole.final)


@pytest.mark.slow
def test_two_then_one_then_four_processes_are_the_same_run(whole, tmp_path):
    total = ["--lr_scheduler.total_steps", "8"]
    runs = [
        Run(tmp_path, "two", "--training.steps", "3", *total, processes=2),
        Run(tmp_path, "one", "--training.steps", "6", *total, processes=1),
        Run(tmp_path, "four", *total, processes=4),
    ]
    assert [list(run.losses) for run in runs] == [[1, 2, 3], [4, 5, 6], [7, 8]]
    assert same(runs[0].initial, whole.initial)
    assert same(runs[2].initial, whole.initial)
    for run in runs:
        for step, loss in run.losses.items():
            assert torch.equal(run.tokens[step], whole.tokens[step])
            assert loss == pytest.approx(whole.losses[step], rel=1e-6)


def test_the_layout_may_change_at_every_restart(whole, tmp_path):
    """FSDP, then tensor, context and pipeline parallel, each from the other's checkpoint; then one process."""
    total = ["--lr_scheduler.total_steps", "8"]
    layouts = [
        ("2", ["--parallelism.data_parallel_shard_degree", "2"]),
        ("3", ["--parallelism.tensor_parallel_degree", "2"]),
        ("4", ["--parallelism.context_parallel_degree", "2"]),
        ("6", ["--parallelism.pipeline_parallel_degree", "2", "--training.local_batch_size", "4"]),
    ]
    losses = {}
    for steps, flags in layouts:
        run = Run(tmp_path, f"to-{steps}", "--training.steps", steps, *total, *flags, processes=2)
        assert same(run.initial, whole.initial)
        for step, tokens in run.tokens.items():
            assert torch.equal(tokens, whole.tokens[step])
        losses |= run.losses
    losses |= Run(tmp_path, "alone", *total).losses
    assert list(losses) == list(range(1, 9))
    for step, loss in losses.items():
        assert loss == pytest.approx(whole.losses[step], rel=2e-6)


def test_validation_is_the_same_on_every_layout(tmp_path):
    """A whole pass over documents of uneven length: rows end at different steps, and all ranks at the same."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": "words and more " * (5 * i + 1)}) + "\n" for i in range(9)))
    flags = [
        "--validation.enable", "--validation.dataset", "text", "--validation.dataset_path", str(data),
        "--validation.seq_len", "48", "--training.steps", "1", "--checkpoint.no-enable",
    ]  # fmt: skip
    shown = {}
    for layout, rows, processes in (
        ("data_parallel_shard_degree", "4", 1),
        ("data_parallel_shard_degree", "2", 2),
        ("pipeline_parallel_degree", "4", 2),
        ("context_parallel_degree", "4", 2),
    ):
        run = Run(
            tmp_path, f"{layout}-{processes}", *flags, f"--parallelism.{layout}", str(processes),
            "--validation.local_batch_size", rows, "--training.local_batch_size", rows, processes=processes,
        )  # fmt: skip
        (line,) = [message for message in run.messages if "validation loss" in message]
        shown[layout, processes] = float(line.split("validation loss ")[1].split()[0])
    assert max(shown.values()) - min(shown.values()) <= 1.01e-4, shown  # as printed


def test_sets_are_the_same_on_every_layout_and_batch(tmp_path):
    """Documents longer and shorter than rows, in sequences that the layout must not change."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"words {i} more " * (7 * i + 1)}) + "\n" for i in range(9)))
    sets = [
        {"name": "whole", "dataset": "text", "dataset_path": str(data), "rows": 3},
        {"name": "part", "dataset": "text", "dataset_path": str(data), "rows": 1, "steps": 2},
    ]
    flags = ["--validation.enable", "--validation.sets", json.dumps(sets), "--training.steps", "1",
             "--checkpoint.no-enable", "--validation.seq_len", "48", "--metrics.loggers", "jsonl"]  # fmt: skip
    found = []
    for layout, rows, processes in (("replicate", "4", 1), ("shard", "2", 2)):
        dump = tmp_path / layout
        Run(
            tmp_path, layout, *flags, f"--parallelism.data_parallel_{layout}_degree", str(processes),
            "--validation.local_batch_size", rows, "--job.dump_folder", str(dump), processes=processes,
        )  # fmt: skip
        lines = [json.loads(line) for line in (dump / "metrics.jsonl").read_text().splitlines()]
        found += [
            {name: value for name, value in line.items() if "validation/" in name} for line in lines[1:]
        ]
    one, two = found
    assert set(one) == {f"validation/{name}/{metric}" for name in ("whole", "part")
                        for metric in ("loss", "perplexity", "bits_per_byte")}  # fmt: skip
    assert one["validation/part/loss"] != one["validation/whole/loss"]
    assert two == pytest.approx(one, rel=1e-6)
