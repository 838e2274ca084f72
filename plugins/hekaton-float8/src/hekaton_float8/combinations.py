"""What float8 cannot be combined with: a table, checked before anything is built, and printed in the docs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hekaton.combinations import Combination, check_combinations
from hekaton_float8 import LINEAR

if TYPE_CHECKING:
    from hekaton.errors import HekatonError
    from hekaton.rules import Run

MX = "quantize.linear.mx"
CONVERTERS = "model.converters"


def _section(run: Run) -> Any:
    return run.config.section(LINEAR)


def _after(run: Run, name: str) -> bool:
    """Whether the converter ``name`` comes before float8."""
    names = run.config.model.converters
    return name in names and names.index(name) < names.index(LINEAR)


def _gathers(run: Run) -> bool:
    return bool(_section(run).enable_fsdp_float8_all_gather)


def _capability_is_below(run: Run, needed: tuple[int, int]) -> bool:
    if run.device_type != "cuda" or _section(run).emulate or not run.here:
        return False
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() < needed


def _recipe(run: Run) -> str:
    return _section(run).recipe_name or "tensorwise"


TABLE = (
    Combination(
        when="lora before quantize.linear.float8",
        applies=lambda run: _after(run, "lora"),
        reason="a layer that has an adapter is not converted any more",
        instead=f'write converters = ["{LINEAR}", "lora"]: adapters beside float8 layers compute in the '
        "precision of the run",
        fields=(CONVERTERS,),
    ),
    Combination(
        when="quantize.linear.float8 with quantize.linear.mx",
        applies=lambda run: MX in run.config.model.converters,
        reason="a linear layer computes in one format",
        instead="choose one of them",
        fields=(CONVERTERS,),
    ),
    Combination(
        when="tensorwise float8 with lora under tensor parallel",
        applies=lambda run: (
            _recipe(run) == "tensorwise"
            and "lora" in run.config.model.converters
            and run.config.parallelism.tensor_parallel_degree > 1
        ),
        reason="inputs are gathered in float8, and adapters read them in the precision of the run",
        instead='set recipe_name = "rowwise", which gathers them in the precision of the run',
        fields=(CONVERTERS, "parallelism.tensor_parallel_degree"),
    ),
    Combination(
        when="float8 all-gather under tensor parallel without precomputed scales",
        applies=lambda run: (
            _gathers(run)
            and run.config.parallelism.tensor_parallel_degree > 1
            and not _section(run).precompute_float8_dynamic_scale_for_fsdp
        ),
        reason="torchao takes the scale of the part of a weight that a tensor-parallel rank has",
        instead="set precompute_float8_dynamic_scale_for_fsdp = true: scales of whole weights",
        fields=(f"{LINEAR}.enable_fsdp_float8_all_gather", "parallelism.tensor_parallel_degree"),
    ),
    Combination(
        when="float8 all-gather with a rowwise recipe",
        applies=lambda run: _gathers(run) and _recipe(run) != "tensorwise",
        reason="ranks would need scales of rows that other ranks have, which torchao does not gather",
        instead='set recipe_name = "tensorwise", or enable_fsdp_float8_all_gather = false',
        fields=(f"{LINEAR}.enable_fsdp_float8_all_gather", f"{LINEAR}.recipe_name"),
    ),
    Combination(
        when="float8 all-gather with lora",
        applies=lambda run: _gathers(run) and "lora" in run.config.model.converters,
        reason="scales are those of weights that are trained, and lora freezes them",
        instead="set enable_fsdp_float8_all_gather = false",
        fields=(f"{LINEAR}.enable_fsdp_float8_all_gather", CONVERTERS),
    ),
    Combination(
        when="float8 all-gather with parameters offloaded to the CPU",
        applies=lambda run: _gathers(run) and run.config.training.enable_cpu_offload,
        reason="the cast would be made on the CPU, for every gather",
        instead="set enable_fsdp_float8_all_gather = false",
        fields=(f"{LINEAR}.enable_fsdp_float8_all_gather", "training.enable_cpu_offload"),
    ),
    Combination(
        when="float8 all-gather on one data-parallel rank",
        applies=lambda run: (
            _gathers(run)
            and run.data_parallel_degree == 1
            and run.config.parallelism.context_parallel_degree == 1
        ),
        reason="no effect: nothing is gathered",
        instead="it has one with data_parallel_shard_degree above 1",
        fields=(f"{LINEAR}.enable_fsdp_float8_all_gather",),
        refused=False,
    ),
    Combination(
        when="tensorwise float8 on a GPU below capability 8.9",
        applies=lambda run: _recipe(run) == "tensorwise" and _capability_is_below(run, (8, 9)),
        reason="it has no products in float8",
        instead=f"set {LINEAR}.emulate = true to try the numerics, or leave the converter out",
        fields=(CONVERTERS,),
    ),
    Combination(
        when="rowwise float8 on a GPU below capability 9.0",
        applies=lambda run: _recipe(run) != "tensorwise" and _capability_is_below(run, (9, 0)),
        reason="it has no products in float8 with a scale for each row",
        instead=f'set recipe_name = "tensorwise" on capability 8.9, or {LINEAR}.emulate = true',
        fields=(CONVERTERS, f"{LINEAR}.recipe_name"),
    ),
    Combination(
        when="float8 on a CPU",
        applies=lambda run: run.device_type == "cpu" and not _section(run).emulate,
        reason="it has no products in float8",
        instead="values are rounded to float8, and products computed in the precision of the run",
        fields=(f"{LINEAR}.emulate",),
        refused=False,
    ),
    Combination(
        when="float8 on a GPU without compile",
        applies=lambda run: (
            run.device_type == "cuda"
            and not _section(run).emulate
            and not (run.config.compile.enable and "model" in run.config.compile.components)
        ),
        reason="casts that are not fused take longer than float8 saves",
        instead="set compile.enable = true",
        fields=("compile.enable",),
        refused=False,
    ),
)


def float8_can_be_combined(run: Run) -> Iterator[HekatonError | str]:
    """What the table says of a run with float8."""
    if LINEAR in run.config.model.converters:
        yield from check_combinations(TABLE, run)
