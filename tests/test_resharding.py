"""Saved under any layout, loaded under any other: every bit of weights and optimizer state is the same."""

from pathlib import Path

import pytest

from hekaton.testing.distributed import run_processes

SCRIPT = Path(__file__).with_name("resharding_on_processes.py")


def degrees(**degrees: int) -> list[str]:
    return [word for name, degree in degrees.items() for word in (f"--parallelism.{name}", str(degree))]


SHARD, REPLICATE, TP, PP = (
    "data_parallel_shard_degree",
    "data_parallel_replicate_degree",
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
)
LAYOUTS = {
    "fsdp": degrees(**{SHARD: 4}),
    "hsdp": degrees(**{REPLICATE: 2, SHARD: 2}),
    "tp": degrees(**{TP: 4, SHARD: 1}),
    "pp": degrees(**{PP: 2, REPLICATE: 2, SHARD: 1}),
    "fsdp-tp": degrees(**{SHARD: 2, TP: 2}),
    "pp-fsdp": degrees(**{PP: 2, SHARD: 2}),
}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_under_any_layout_loaded_under_any_other(tmp_path: Path, tied: bool) -> None:
    tie = ["--model.flavor", "debugmodel_tied"] if tied else []
    # A pipeline does not take a parameter that two stages share.
    layouts = {name: [*tie, *flags] for name, flags in LAYOUTS.items() if not (tied and "pp" in name)}
    alone = {"single": tie}
    run_processes(SCRIPT, "run", processes=1, timeout=60, folder=str(tmp_path), layouts=alone, saved=[])
    run_processes(
        SCRIPT, "run", processes=4, timeout=110, folder=str(tmp_path), layouts=layouts, saved=["single"]
    )
    run_processes(
        SCRIPT, "run", processes=1, timeout=60, folder=str(tmp_path), layouts=alone, saved=list(layouts)
    )
