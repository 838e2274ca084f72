"""What MXFP8 cannot be combined with: a table, checked before anything is built, and printed in the docs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hekaton.combinations import Combination, check_combinations
from hekaton_mx import LINEAR

if TYPE_CHECKING:
    from hekaton.errors import HekatonError
    from hekaton.rules import Run

CONVERTERS = "model.converters"


def _lora_first(run: Run) -> bool:
    names = run.config.model.converters
    return "lora" in names and names.index("lora") < names.index(LINEAR)


def _gpu_is_older(run: Run) -> bool:
    if run.device_type != "cuda" or not run.here or "emulated" in run.config.section(LINEAR).recipe_name:
        return False
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() < (10, 0)


TABLE = (
    Combination(
        when="lora before quantize.linear.mx",
        applies=_lora_first,
        reason="a layer that has an adapter is not converted any more",
        instead=f'write converters = ["{LINEAR}", "lora"]',
        fields=(CONVERTERS,),
    ),
    Combination(
        when="quantize.linear.mx with quantize.linear.float8",
        applies=lambda run: "quantize.linear.float8" in run.config.model.converters,
        reason="a linear layer computes in one format",
        instead="choose one of them",
        fields=(CONVERTERS,),
    ),
    Combination(
        when="NVFP4",
        applies=lambda run: run.config.section(LINEAR).recipe_name == "nvfp4",
        reason="torchao 0.18 has kernels for GPUs of capability 10.0 alone, and no emulation to check them",
        instead='set recipe_name = "mxfp8_rceil"',
        fields=(f"{LINEAR}.recipe_name",),
    ),
    Combination(
        when="MXFP8 on a GPU below capability 10.0",
        applies=_gpu_is_older,
        reason="it has no products in MXFP8",
        instead='set recipe_name = "mxfp8_emulated_rceil" to try the numerics, or use quantize.linear.float8',
        fields=(CONVERTERS, f"{LINEAR}.recipe_name"),
    ),
    Combination(
        when="MXFP8 on a CPU",
        applies=lambda run: (
            run.device_type == "cpu" and "emulated" not in run.config.section(LINEAR).recipe_name
        ),
        reason="it has no products in MXFP8",
        instead="values are rounded to MXFP8, and products computed in the precision of the run",
        fields=(f"{LINEAR}.recipe_name",),
        refused=False,
    ),
    Combination(
        when="MXFP8 on a GPU without compile",
        applies=lambda run: (
            run.device_type == "cuda"
            and "emulated" not in run.config.section(LINEAR).recipe_name
            and not (run.config.compile.enable and "model" in run.config.compile.components)
        ),
        reason="casts that are not fused take longer than MXFP8 saves",
        instead="set compile.enable = true",
        fields=("compile.enable",),
        refused=False,
    ),
)


def mx_can_be_combined(run: Run) -> Iterator[HekatonError | str]:
    """What the table says of a run with MXFP8."""
    if LINEAR in run.config.model.converters:
        yield from check_combinations(TABLE, run)
