"""Random runs: each is refused by name before anything is built, or computes what one process does.

Sizes that divide and sizes that don't, degrees, schedules, strategies, batches, adapters, experts. Most draws are
near to something that trains, and about half of them have a fault that the configuration has to name.

``HEKATON_TEST_SEED`` repeats the draws of a run, whose seed is printed.
"""

import json
import math
import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from hekaton.parallel.schedules import SCHEDULES, SINGLE_STAGE, microbatches_needed
from hekaton.testing import run_command, run_processes
from hekaton.testing.steps import train_steps

SCRIPT = Path(__file__).with_name("draws_on_processes.py")
TOYS = str(SCRIPT.with_name("toys.py"))
RUNS_A_LAUNCH = 24  # the threads of process groups stay until their processes end
STEPS = 3
NUMBERS = range(150)
TOLERANCE = 1e-9
"""Relative; in float64 a right layout agrees to 1e-12 or so."""
FIXED = [
    "--plugins.load", str(SCRIPT.with_name("short_documents.py")),
    "--model.tokenizer", "byte",
    "--training.dataset", "short_documents", "--training.steps", str(STEPS), "--training.max_norm", "0.5",
    "--training.dtype", "float64", "--training.mixed_precision_param", "float64",
    "--training.mixed_precision_reduce", "float64", "--lr_scheduler.warmup_steps", "1",
]  # fmt: skip
MOST_PROCESSES = 8


@dataclass(frozen=True)
class Draw:
    """A run to be refused, or to be what it is on one process.

    :param batch: rows of a step.
    :param alone: the flags of the model and its data, which one process takes as well.
    :param layout: the flags that must not change what is computed.
    """

    number: int
    processes: int
    batch: int
    alone: list[str]
    layout: list[str]

    @property
    def flags(self) -> list[str]:
        return [*FIXED, *self.alone, *self.layout]

    @property
    def reference(self) -> list[str]:
        rows = ["--training.local_batch_size", str(self.batch)]
        return [*FIXED, *self.alone, *rows, "--activation_checkpoint.mode", "none"]


def draw(seed: int, number: int) -> Draw:
    """The draw of a number, the same for the same seed."""
    pick = random.Random(f"{seed} {number}")
    degrees = _degrees(pick)
    strategy = pick.choice(["allgather", "ring", "ulysses"])
    schedule = pick.choice(SCHEDULES)
    sizes = _sizes(pick, degrees, ulysses=strategy == "ulysses", schedule=schedule)
    batch, rows, microbatch = _batch(pick, degrees, schedule)
    model, of_experts = _model(random.Random(f"{seed} {number} experts"), degrees, sizes)
    alone = [
        *model, "--training.seq_len", str(_length(pick, degrees)),
        "--training.global_batch_size", str(batch),
        "--training.packing", pick.choice(["documents", "documents", "concat"]),
    ]  # fmt: skip
    layout = [
        "--parallelism.data_parallel_replicate_degree", str(degrees["replicate"]),
        "--parallelism.data_parallel_shard_degree", str(degrees["shard"]),
        "--parallelism.context_parallel_degree", str(degrees["cp"]),
        "--parallelism.tensor_parallel_degree", str(degrees["tp"]),
        "--parallelism.pipeline_parallel_degree", str(degrees["pp"]),
        "--training.local_batch_size", str(rows),
        *_checkpointing(pick), *of_experts,
    ]  # fmt: skip
    if degrees["tp"] > 1:
        layout += pick.choice([[], [], ["--parallelism.no-sequence_parallel"]])
        layout += pick.choice([[], [], ["--parallelism.disable_loss_parallel"]])
    if degrees["cp"] > 1:
        layout += ["--parallelism.context_parallel_strategy", strategy]
        layout += pick.choice([[], ["--parallelism.context_parallel_load_balancer", "none"]])
    if degrees["pp"] > 1:
        layout += ["--parallelism.pipeline_parallel_schedule", schedule]
        layout += ["--parallelism.pipeline_parallel_microbatch_size", str(microbatch)]
    if degrees["shard"] > 1:
        reshard = ["--parallelism.fsdp_reshard_after_forward", pick.choice(["always", "never"])]
        layout += pick.choice([[], [], reshard])
    alone += _adapters(pick)
    return Draw(number, math.prod(degrees.values()), batch, alone, layout)


T = TypeVar("T")


def _mostly(pick: random.Random, right: list[T], wrong: list[T]) -> T:
    """One that can be, but for one in ten; several such choices make a draw."""
    return pick.choice(right if pick.random() < 0.9 else wrong)


def _degrees(pick: random.Random) -> dict[str, int]:
    """Of which most are 1; their product is at most the number of processes, and in two of three draws half of it."""
    most = pick.choice([MOST_PROCESSES // 2, MOST_PROCESSES // 2, MOST_PROCESSES])
    while True:
        axes = ("replicate", "shard", "cp", "tp", "pp")
        degrees = {axis: pick.choice([1, 1, 1, 2, 2, 3, 4]) for axis in axes}
        if 1 < math.prod(degrees.values()) <= most:
            return degrees


def _sizes(pick: random.Random, degrees: dict[str, int], *, ulysses: bool, schedule: str) -> dict[str, int]:
    tp = degrees["tp"]
    cut = tp * (degrees["cp"] if ulysses else 1)
    kv_heads = _mostly(pick, [cut, cut, 2 * cut], [1, 2, 3, 4])
    heads = kv_heads * _mostly(pick, [1, 2], [1, 3])
    stages = degrees["pp"] * (1 if schedule in SINGLE_STAGE else 2)
    layers = [stages + 1, stages + 2, 2 * stages, 5] if degrees["pp"] > 1 else [1, 2, 2, 3]
    return {
        "dim": heads * pick.choice([4, 8]),
        "n_layers": _mostly(pick, layers, [1, 2, 3]),
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "hidden_dim": _mostly(pick, [tp * 16, tp * 15], [48, 64, 50]),
        "vocab_size": _mostly(pick, [264, 288, 264 * tp], [259, 262, 265]),
    }


def _model(
    pick: random.Random, degrees: dict[str, int], sizes: dict[str, int]
) -> tuple[list[str], list[str]]:
    """The flags of the model, three in ten with experts, and those of where its experts are."""
    if pick.random() < 0.7:
        model = ["--model.name", "llama3", "--model.flavor", "debugmodel"]
        return [*model, "--model.overrides", json.dumps(sizes)], []
    ranks = degrees["shard"] * degrees["cp"] * degrees["tp"]
    etp = _mostly(pick, [1, *divisors(degrees["tp"])], [2, 3])
    ep = _mostly(pick, [*divisors(ranks // etp or 1)[1:], *divisors(ranks // etp or 1)], [2, 3, 4])
    experts = {
        "n_experts": _mostly(pick, [2 * ep, 4 * ep], [4, 6]), "top_k": _mostly(pick, [1, 2], [3, 5]),
        "hidden_dim": etp * pick.choice([8, 12]), "bias_rate": 1e-3, "sequence_balance": 1e-2,
        "batch_balance": pick.choice([0.0, 1e-2]),
    }  # fmt: skip
    width = {name: size for name, size in sizes.items() if name != "hidden_dim"}
    overrides = width | {"head_dim": 2 * pick.choice([2, 4]), "moe": experts}
    named = pick.choice([["qwen3", "--model.flavor", "debugmodel_moe"], ["gpt_oss"]])
    layout = [
        "--parallelism.expert_parallel_degree", str(ep),
        "--parallelism.expert_tensor_parallel_degree", str(etp),
    ]  # fmt: skip
    return ["--model.name", *named, "--model.overrides", json.dumps(overrides)], layout


def divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]


def _batch(pick: random.Random, degrees: dict[str, int], schedule: str) -> tuple[int, int, int]:
    """Rows of a step, of what a process takes at once, and of a microbatch."""
    dp = degrees["replicate"] * degrees["shard"]
    microbatch, needed = pick.choice([1, 1, 2]), 1
    if degrees["pp"] > 1:
        needed = microbatches_needed(schedule, degrees["pp"]) * microbatch
    rows = _mostly(pick, [needed, 2 * needed], [1, 2, 3])
    whole = dp * rows
    return _mostly(pick, [whole, whole, 2 * whole], [whole + 1, 3]), rows, microbatch


def _length(pick: random.Random, degrees: dict[str, int]) -> int:
    even = 2 * degrees["cp"] * degrees["tp"]
    return _mostly(pick, [even * 4, even * 2, even * 3], [24, 32, 30])


def _adapters(pick: random.Random) -> list[str]:
    """One run in three trains adapters beside a frozen model, some of them on few layers."""
    if pick.random() < 2 / 3:
        return []
    targets = [
        "layers.*.attention.wo",
        "layers.1.**",
        "layers.0.feed_forward.w2,layers.*.attention.wk",
        "output",
    ]
    chosen = _mostly(pick, ["", "", *targets], ["layers.*.attention.wx", "layers.*.attention_norm"])
    rank = _mostly(pick, [1, 2, 3, 4], [0, 4096])
    flags = ["--plugins.load", TOYS, "--model.converters", "lora,start_adapters", "--lora.rank", str(rank)]
    return [*flags, *(["--lora.targets", chosen] if chosen else [])]


def _checkpointing(pick: random.Random) -> list[str]:
    mode = pick.choice(["none", "none", "full", "selective"])
    option = ["--activation_checkpoint.selective_ac_option", pick.choice(["2", "op"])]
    return ["--activation_checkpoint.mode", mode, *(option if mode == "selective" else [])]


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def seed(pytestconfig):
    """The same each time unless HEKATON_TEST_SEED says another, so that a change is what fails a run."""
    seed = int(os.environ.get("HEKATON_TEST_SEED", "1"))
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nHEKATON_TEST_SEED={seed}")
    return seed


@pytest.fixture(scope="module")
def drawn(seed):
    return {number: draw(seed, number) for number in NUMBERS}


@pytest.fixture(scope="module")
def checked(drawn, tmp_path_factory):
    """Number -> status and words of ``hekaton config check``."""
    folder = tmp_path_factory.mktemp("checked")
    cases = {number: {"flags": its.flags, "processes": its.processes} for number, its in drawn.items()}
    (folder / "cases.json").write_text(json.dumps(cases))
    run_processes(SCRIPT, "check_all", processes=1, timeout=300, folder=str(folder))
    said = json.loads((folder / "said.json").read_text())
    return {int(number): tuple(its) for number, its in said.items()}


@pytest.fixture(scope="module")
def trained(drawn, checked, tmp_path_factory):
    """Number -> (losses and norms on its processes, alone), of those that were accepted."""
    folder = tmp_path_factory.mktemp("trained")
    accepted = [its for number, its in drawn.items() if checked[number][0] == 0]
    alone = train({its.number: its.reference for its in accepted}, 1, folder)
    spread = {}
    for processes in sorted({its.processes for its in accepted}):
        cases = {its.number: its.flags for its in accepted if its.processes == processes}
        spread |= train(cases, processes, folder)
    return {number: (spread[number], alone[number]) for number in alone}


def train(runs, processes, folder):
    named = {str(number): words for number, words in runs.items()}
    numbers = {}
    for some in batched(named.items(), RUNS_A_LAUNCH):
        numbers |= train_steps(dict(some), processes=processes, steps=STEPS, folder=folder, timeout=600)
    return {int(number): its for number, its in numbers.items()}


def batched(items, size):
    items = list(items)
    return [items[start : start + size] for start in range(0, len(items), size)]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_draw_is_refused_by_name_or_is_the_single_process(number, seed, drawn, checked, trained):
    what = f"HEKATON_TEST_SEED={seed} number {number}: {' '.join(drawn[number].flags)}"
    status, said = checked[number]
    assert status in (0, 2), f"{what}\n{said}"
    if status == 2:
        assert said.startswith("error: "), f"{what}\n{said}"
        assert "Traceback" not in said
        return
    spread, one = trained[number]
    assert len(spread) == len(one) == STEPS
    for step, (got, expected) in enumerate(zip(spread, one, strict=True)):
        assert got == pytest.approx(expected, rel=TOLERANCE), f"step {step} of {what}"


def test_many_draws_train_and_many_are_refused(drawn, checked):
    for kind, least in {"llama3": 1 / 6, "qwen3": 1 / 50, "gpt_oss": 1 / 50}.items():
        statuses = Counter(checked[number][0] for number, its in drawn.items() if kind in its.alone)
        assert min(statuses[0], statuses[2]) > len(NUMBERS) * least, (kind, statuses)


def test_a_refused_run_ends_with_the_message_of_the_check(drawn, checked):
    refused = [number for number, (status, _) in checked.items() if status == 2][:4]
    for number in refused:
        processes = drawn[number].processes
        done = run_command("train", *drawn[number].flags, processes=processes, timeout=60)
        assert done.returncode == 2
        assert checked[number][1].removeprefix("error: ") in "".join(rank.stderr for rank in done.ranks)
