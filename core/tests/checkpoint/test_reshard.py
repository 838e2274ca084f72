"""Saved by one number of processes, loaded by another: every bit of model and optimizer is the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hekaton.testing.distributed import run_processes

FILE = Path(__file__).with_name("reshard_on_processes.py")


@pytest.fixture
def alone() -> ModuleType:
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_saved_by_any_number_of_processes_loads_on_any_other(
    tmp_path: Path, alone: ModuleType
) -> None:
    alone.save(tmp_path)
    run_processes(
        FILE, "on_processes", processes=2, timeout=60, folder=str(tmp_path), saves=True, loads=[1, 2]
    )
    run_processes(
        FILE, "on_processes", processes=4, timeout=60, folder=str(tmp_path), saves=True, loads=[1, 2, 4]
    )
    run_processes(FILE, "on_processes", processes=2, timeout=60, folder=str(tmp_path), saves=False, loads=[4])
    for by in (1, 2, 4):
        alone.load(tmp_path, by)
    assert_torch_converts(tmp_path)


def assert_torch_converts(tmp_path: Path) -> None:
    """The step of four processes becomes one file of torch, by torch's own converter."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    step = tmp_path / "by-4" / "step-3"
    assert sorted(path.name for path in step.iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "__2_0.distcp", "__3_0.distcp", "manifest.json",
    ]  # fmt: skip
    dcp_to_torch_save(step, tmp_path / "out.pt")
    converted = torch.load(tmp_path / "out.pt", weights_only=True)
    reference = torch.load(tmp_path / "by-4.pt", weights_only=True)
    for name, tensor in reference["model"].items():
        assert torch.equal(converted[name], tensor), name
    for name, tensor in reference["optimizer"].items():
        assert torch.equal(converted[f"optimizer.{name}"], tensor), name


def test_experts_on_their_own_mesh_are_resharded(tmp_path: Path, alone: ModuleType) -> None:
    """Saved under any layout of the experts, loaded under any other, and by one process."""
    alone.save_mixture(tmp_path, "single")
    run_processes(FILE, "mixtures", processes=4, timeout=100, folder=str(tmp_path))
    alone.load_mixture(tmp_path, "single")


def test_an_error_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    run_processes(FILE, "trouble", processes=2, timeout=60, folder=str(tmp_path))
