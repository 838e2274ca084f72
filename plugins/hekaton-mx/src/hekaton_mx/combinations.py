"""What MX formats and NVFP4 cannot be combined with: a table, checked before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hekaton.combinations import (
    CONVERTERS,
    Combination,
    check_combinations,
    compiles_model,
    wrong_order,
)
from hekaton_mx import GROUPED, LINEAR

if TYPE_CHECKING:
    from hekaton.errors import HekatonError
    from hekaton.rules import Run


def _is_emulated(run: Run, converter: str) -> bool:
    return "emulated" in run.config.section(converter).recipe_name


def _entries(
    converter: str, float8: str, what: str, *, formats: str, emulated: str
) -> tuple[Combination, ...]:
    """What the converters for linear layers and for experts have in common.

    :param float8: the converter of the same products to float8.
    :param what: what computes them.
    :param formats: what it computes them in; :param emulated: the recipes that round to it.
    """
    recipe = f"{converter}.recipe_name"
    return (
        Combination(
            converter=converter,
            when=f"{converter} with {float8}",
            applies=lambda run: float8 in run.config.model.converters,
            reason=f"{what} in one format",
            instead="choose one of them",
            fields=(CONVERTERS,),
        ),
        Combination(
            converter=converter,
            when=f"{converter} on a GPU below capability 10.0",
            applies=lambda run: run.device_type == "cuda" and not _is_emulated(run, converter),
            capability=(10, 0),
            reason=f"it has no products in {formats}",
            instead=f"set recipe_name = {emulated} to try the numerics, or use {float8}",
            fields=(CONVERTERS, recipe),
        ),
        Combination(
            converter=converter,
            when=f"{converter} on a CPU",
            applies=lambda run: run.device_type == "cpu" and not _is_emulated(run, converter),
            reason=f"it has no products in {formats}",
            instead="values are rounded to the format, and products computed in the precision of the run",
            fields=(recipe,),
            refused=False,
        ),
    )


TABLE = (
    wrong_order(LINEAR, first="lora", reason="a layer that has an adapter is not converted any more"),
    *_entries(
        LINEAR,
        "quantize.linear.float8",
        "a linear layer computes",
        formats="MXFP8 or NVFP4",
        emulated='"mxfp8_emulated_rceil" or "nvfp4_emulated"',
    ),
    Combination(
        converter=LINEAR,
        when=f"{LINEAR} on a GPU without compile",
        applies=lambda run: (
            run.device_type == "cuda" and not _is_emulated(run, LINEAR) and not compiles_model(run)
        ),
        reason="casts that are not fused take longer than its products save",
        instead="set compile.enable = true",
        fields=("compile.enable",),
        refused=False,
    ),
    *_entries(
        GROUPED,
        "quantize.grouped_mm.float8",
        "experts compute",
        formats="MXFP8",
        emulated='"mxfp8_emulated_rceil"',
    ),
    Combination(
        converter=GROUPED,
        when=f"{GROUPED} in NVFP4",
        applies=lambda run: run.config.section(GROUPED).recipe_name == "nvfp4",
        reason="torchao 0.18 has products of experts in it, and no gradients of them",
        instead='set recipe_name = "mxfp8_rceil"; quantize.linear.mx has "nvfp4"',
        fields=(f"{GROUPED}.recipe_name",),
    ),
)


def mx_can_be_combined(run: Run) -> Iterator[HekatonError | str]:
    """What the table says of a run with MXFP8 or NVFP4."""
    yield from check_combinations(TABLE, run)
