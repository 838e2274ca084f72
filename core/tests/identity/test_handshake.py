"""The processes of a run find out that they differ, and say in what, each in the same words."""

import json
from pathlib import Path
from typing import Any

import pytest

from hekaton.testing import run_processes

ON_PROCESSES = Path(__file__).with_name("handshake_on_processes.py")
FILES = "start all processes with the same files and flags"
INSTALL = "install the same versions on all machines"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each case says, the same on all ranks."""
    folder = tmp_path_factory.mktemp("handshake")
    run_processes(ON_PROCESSES, "run", processes=4, folder=str(folder))
    of_ranks = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(4)]
    notices = [of_rank["a version that computes nothing"].pop() for of_rank in of_ranks]
    machines = [of_rank["machines"].pop() for of_rank in of_ranks]
    assert of_ranks.count(of_ranks[0]) == 4
    return {**of_ranks[0], "notices": notices, "of machines": machines}


def differ(*lines: str, cure: str = FILES) -> str:
    return "\n".join(["the processes of this run differ:", *(f"  {line}" for line in (*lines, cure) if line)])


def test_equal_processes_send_a_message_for_each_doubling_of_their_number(said: dict[str, Any]) -> None:
    assert said["equal"] == ""
    assert said["exchanges"] == {"isend": 2}


def test_a_field_is_named_with_its_values_and_who_has_which(said: dict[str, Any]) -> None:
    assert said["one field"] == differ("optimizer.lr: 0.0008 on ranks 0-2, 0.002 on rank 3 (b)")


def test_all_fields_that_differ_are_named(said: dict[str, Any]) -> None:
    lines = said["a machine"].split("\n")
    assert sorted(lines[1:-1]) == [
        "  checkpoint.interval: 500 on ranks 0-1 (a), 2 on ranks 2-3 (b)",
        "  debug.seed: not set on ranks 0-1 (a), 3 on ranks 2-3 (b)",
        "  model.overrides.hidden_dim: not set on ranks 0-1 (a), 64 on ranks 2-3 (b)",
        "  model.overrides.n_layers: not set on ranks 0-1 (a), 1 on ranks 2-3 (b)",
        "  optimizer.lr: 0.0008 on ranks 0-1 (a), 0.5 on ranks 2-3 (b)",
        "  training.mixed_precision_param: bfloat16 on ranks 0-1 (a), float64 on ranks 2-3 (b)",
        "  training.seq_len: 2048 on ranks 0-1 (a), 16 on ranks 2-3 (b)",
        "  training.steps: 10000 on ranks 0-1 (a), 7 on ranks 2-3 (b)",
    ]


def test_fields_that_may_differ_are_left_alone(said: dict[str, Any]) -> None:
    assert said["free fields"] == ""


def test_many_values_are_looked_at_in_part(said: dict[str, Any]) -> None:
    values = ", ".join(f"{100 + rank} on rank {rank} ({'ab'[rank // 2]})" for rank in range(4))
    assert said["a value each"] == differ(f"training.steps: {values}")
    assert said["too many values"] == differ(
        "training.steps: 100 on rank 0 (a), 101 on rank 1 (a)",
        "configuration: other values still on ranks 2-3 (b)",
    )


def test_source_is_compared_by_its_content(said: dict[str, Any]) -> None:
    message = said["source"]
    assert "  source of own_constant.py: " in message
    assert " on ranks 0, 2, " in message
    assert message.endswith(" on ranks 1, 3\n  bring the code of all machines to the same state")
    assert "own_plugin.py" not in message, "the plugin itself is the same"
    assert said["source of earlier cases"] == ""


def test_versions_are_compared(said: dict[str, Any]) -> None:
    assert said["versions"] == differ("hekaton: 0.1.0 on ranks 0-1, 3, 9.9 on rank 2 (b)", cure=INSTALL)


def test_a_library_that_computes_nothing_gives_a_notice(said: dict[str, Any]) -> None:
    assert said["a version that computes nothing"] == [""]
    (line,), *others = said["notices"]
    assert others == [[], [], []]
    assert line.startswith("notice: processes have different other versions: rich: ")
    assert line.endswith(" on ranks 0, 2-3, 9.9 on rank 1 (a)")


def test_another_number_of_processes_on_a_machine_gives_a_notice(said: dict[str, Any]) -> None:
    assert said["machines"] == [""]
    assert said["of machines"] == [
        ["notice: processes have different machines: processes on the machine: 3 on ranks 0-2, 1 on rank 3 (b)"],
        [], [], [],
    ]  # fmt: skip


PROCESSOR = (
    "start all processes on the same kind of processor, or have it compute alike: ATEN_CPU_CAPABILITY=avx2 "
    "(or default), OMP_NUM_THREADS=1, on all machines"
)


def test_processors_that_compute_otherwise_are_reported(said: dict[str, Any]) -> None:
    assert said["threads"] == differ(
        "threads of the process: 1 on ranks 0-2, 2 on rank 3 (b)", cure=PROCESSOR
    )
    assert said["instructions"] == differ(
        "instructions of the processor: AVX512 on ranks 0, 2-3, AVX2 on rank 1 (a)", cure=PROCESSOR
    )


@pytest.mark.parametrize(
    ("case", "what"),
    [("draws", "random numbers of the processor"), ("products", "products of the processor")],
)
def test_processors_that_draw_or_multiply_otherwise_are_reported(
    said: dict[str, Any], case: str, what: str
) -> None:
    _, line, cure = said[case].split("\n")
    assert line.startswith(f"  {what}: ")
    assert " on ranks 0-1, 3, " in line
    assert line.endswith(" on rank 2 (b)")
    assert cure == f"  {PROCESSOR}"


def test_locale_and_hash_seed_are_not_compared(said: dict[str, Any]) -> None:
    assert said["locale"] == ""


def test_files_that_the_configuration_names_are_compared_by_their_content(said: dict[str, Any]) -> None:
    assert "  parallelism.pipeline_parallel_schedule_csv: content: 6 bytes, " in said["schedule"]
    assert said["schedule"].endswith(" on ranks 2-3 (b)\n  give all machines the same files")


def test_initial_weights_are_compared_by_one_process_of_each_machine(said: dict[str, Any]) -> None:
    start, end = said["initial weights"].split("\n")[1].split(" on rank 0 (a), ")
    assert start.startswith("  initial_load_path: a.bin: 5 bytes, ")
    assert end.startswith("5 bytes, ")
    assert end.endswith(" on rank 2 (b)")


def test_initial_weights_on_a_disk_are_compared_though_they_are_named_by_a_url(said: dict[str, Any]) -> None:
    """``b.bin`` differs in a byte that samples would not show."""
    lines = said["initial weights behind a URL"].split("\n")
    assert [line.split(": ")[1] for line in lines[1:3]] == ["a.bin", "b.bin"]


def test_of_what_some_processes_import_versions_are_compared(said: dict[str, Any]) -> None:
    assert said["imported"] == differ("torchao: 0.18 on ranks 0-1 (a), 0.17 on rank 3 (b)", cure="")
    assert said["imported by some"] == ""


def test_a_device_of_another_kind_is_reported(said: dict[str, Any]) -> None:
    assert said["device"] == differ("device: cuda on ranks 1-3, cpu on rank 0 (a)", cure="")
    assert said["no say"] == ""
    assert said["other subjects"] == differ("device: cuda on ranks 1-3, not set on rank 0 (a)", cure="")


def test_one_process_that_cannot_take_part_ends_all(said: dict[str, Any]) -> None:
    assert said["one cannot"] == "on rank 2 (b): no such file\n  look"
    assert said["all cannot"] == "first\n  from: a.toml\nerror: second"
    assert said["all can"] == ""
