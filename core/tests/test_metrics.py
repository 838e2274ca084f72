"""Rates against hand calculations, the console line, which ranks speak."""

import math
import sys
import time

import pytest
import torch

from hekaton import metrics
from hekaton.errors import PluginError
from hekaton.flops import peak_tflops
from hekaton.metrics import Console, Meter, Phases, log_ranks, set_up_logging

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when told to."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


@pytest.mark.parametrize("flops", [0.0, -1.0, math.inf, "6e9"])
def test_operations_that_cannot_be_are_rejected(flops):
    with pytest.raises(
        PluginError, match=r"TrainSpec\.flops_per_unit or flops_per_row gives .*, not a finite number above 0"
    ):
        Meter(CPU, unit="tokens", flops_per_unit=flops, processes=1)


def test_rates_are_per_process_and_second(clock, monkeypatch):
    monkeypatch.setattr(metrics, "peak_tflops", lambda device: 0.004)
    meter = Meter(CPU, unit="tokens", flops_per_unit=2e6, processes=4)
    for _ in range(2):
        with meter.phases("data"):
            clock(0.5)
        with meter.phases("forward_backward"):
            clock(1.5)
        meter.add(8000)
    report = meter.report()
    # 16,000 tokens in 4 seconds on 4 processes: 1,000 each, at 2 million operations 0.002 TFLOP/s of 0.004.
    assert report["tokens_per_second"] == pytest.approx(1000)
    assert report["tflops"] == pytest.approx(0.002)
    assert report["mfu"] == pytest.approx(0.5)
    assert report["step_seconds"] == pytest.approx(2.0)
    assert report["data_wait_share"] == pytest.approx(0.25)
    assert report["seconds/data"] == pytest.approx(0.5)
    assert report["seconds/forward_backward"] == pytest.approx(1.5)


def test_a_report_starts_from_zero_and_leaves_out_what_is_not_training(clock):
    meter = Meter(CPU, unit="tokens", flops_per_unit=None, processes=1)
    meter.add(1000)
    clock(1.0)
    meter.report()
    meter.add(1000)
    clock(5.0)
    meter.leave_out(3.0)
    report = meter.report()
    assert report["tokens_per_second"] == pytest.approx(500)
    assert "tflops" not in report
    assert "mfu" not in report


def test_phases_are_counted_once(clock):
    phases = Phases(CPU)
    with phases("data"):
        clock(1.0)
    assert phases.take() == {"data": 1.0}
    assert phases.take() == {}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0), ("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA A10", 125.0), ("NVIDIA A10G", None), ("NVIDIA GB200", 2500.0),
        ("NVIDIA L40S", 362.0), ("NVIDIA L4", 121.0), ("A card of next year", None),
    ],
)  # fmt: skip
def test_peak_is_found_by_the_name_of_the_device(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_tflops(torch.device("cuda")) == peak


def test_a_peak_that_is_given_takes_the_place_of_the_known_one():
    meter = Meter(CPU, unit="tokens", flops_per_unit=2e12, processes=1, peak=4.0)
    meter.add(3)
    report = meter.report()
    assert report["mfu"] == pytest.approx(report["tokens_per_second"] * 2 / 4.0)


def test_a_cpu_has_no_known_peak():
    assert peak_tflops(CPU) is None


def test_the_console_line(hekaton_log, capsys):
    set_up_logging(0, 1)
    console = Console(steps=100, step=0, colour=True)
    console.log(7, {"loss": 1.25, "tokens_per_second": 12345.6, "mfu": 0.4, "data_wait_share": 0.015})
    console.close()
    line = capsys.readouterr().err
    assert line.split("  ", 1)[1] == "step      7  loss 1.2500  12,346 tok/s  MFU 40.0%  data 1.5%\n"
    assert "\033" not in line  # not a terminal


FULL = {
    "loss": 9.8765, "grad_norm": 1.2345, "lr": 2.01e-4, "tokens_per_second": 12345.6, "tflops": 412.1,
    "mfu": 0.41, "memory_gib": 72.6, "data_wait_share": 0.002, "seconds/data": 0.1,
}  # fmt: skip


def test_the_console_line_fits_into_100_columns(hekaton_log, capsys):
    set_up_logging(0, 8)
    Console(steps=100, step=0, colour=True).log(10000, FULL)
    line = capsys.readouterr().err.rstrip("\n")
    assert line.endswith("loss 9.8765  norm 1.23  lr 2.0e-04  12,346 tok/s  MFU 41.0%  72.6 GiB")
    assert len(line) <= 100


def test_on_a_narrow_terminal_the_last_numbers_are_left_out(hekaton_log, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")
    set_up_logging(0, 1)
    console = Console(steps=100, step=0, colour=False)
    capsys.readouterr()
    console.log(10000, FULL)
    console.close()
    line = next(line for line in capsys.readouterr().err.splitlines() if "loss" in line)
    assert line.endswith("  step  10000  loss 9.8765  norm 1.23  lr 2.0e-04")


@pytest.mark.parametrize(("said", "ranks"), [("", {0}), ("0,2", {0, 2}), (" 1 ", {1})])
def test_log_rank_chooses_the_ranks_that_log(monkeypatch, hekaton_log, capsys, said, ranks):
    monkeypatch.setenv("LOG_RANK", said)
    assert log_ranks() == ranks
    for rank in range(3):
        set_up_logging(rank, 3)
        hekaton_log.info("told by %d", rank)
        hekaton_log.warning("warned by %d", rank)
    shown = capsys.readouterr().err
    for rank in range(3):
        assert (f"told by {rank}" in shown) == (rank in ranks)
        assert f"[rank{rank}]" in shown
        assert f"warned by {rank}" in shown
