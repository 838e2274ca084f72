"""What float8 cannot be combined with: a table, checked before anything is built, and printed in the docs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hekaton.combinations import (
    CONVERTERS,
    Combination,
    check_combinations,
    comes_before,
    compiles_model,
    wrong_order,
)
from hekaton_float8 import GROUPED, LINEAR

if TYPE_CHECKING:
    from hekaton.errors import HekatonError
    from hekaton.rules import Run

GATHERS = f"{LINEAR}.enable_fsdp_float8_all_gather"
TP = "parallelism.tensor_parallel_degree"


def _section(run: Run) -> Any:
    return run.config.section(LINEAR)


def _gathers(run: Run) -> bool:
    return bool(_section(run).enable_fsdp_float8_all_gather)


def _recipe(run: Run) -> str:
    return _section(run).recipe_name or "tensorwise"


def _on_tensor_parallel(run: Run) -> bool:
    return run.config.parallelism.tensor_parallel_degree > 1


def _tokens(run: Run) -> int:
    """Of a product: those of a microbatch that a rank has."""
    training, layout = run.config.training, run.config.parallelism
    pipelined = layout.pipeline_parallel_degree > 1
    rows = layout.pipeline_parallel_microbatch_size if pipelined else training.local_batch_size
    return rows * training.seq_len // layout.context_parallel_degree


def _multiplies_in_float8(run: Run, converter: str) -> bool:
    return run.device_type == "cuda" and not run.config.section(converter).emulate


def _on_a_cpu(converter: str) -> Combination:
    return Combination(
        converter=converter,
        when=f"{converter} on a CPU",
        applies=lambda run: run.device_type == "cpu" and not run.config.section(converter).emulate,
        reason="it has no products in float8",
        instead="values are rounded to float8, and products computed in the precision of the run",
        fields=(f"{converter}.emulate",),
        refused=False,
    )


TABLE = (
    wrong_order(
        LINEAR,
        first="lora",
        reason="a layer that has an adapter is not converted any more",
        note=": adapters beside float8 layers compute in the precision of the run",
    ),
    Combination(
        converter=LINEAR,
        when="tensorwise float8 with lora under tensor parallel",
        applies=lambda run: (
            _recipe(run) == "tensorwise" and comes_before(run, LINEAR, "lora") and _on_tensor_parallel(run)
        ),
        reason="inputs are gathered in float8, and adapters read them in the precision of the run",
        instead='set recipe_name = "rowwise", which gathers them in the precision of the run',
        fields=(CONVERTERS, TP),
    ),
    Combination(
        converter=LINEAR,
        when="float8 all-gather under tensor parallel without precomputed scales",
        applies=lambda run: (
            _gathers(run)
            and _on_tensor_parallel(run)
            and not _section(run).precompute_float8_dynamic_scale_for_fsdp
        ),
        reason="torchao takes the scale of the part of a weight that a tensor-parallel rank has",
        instead="set precompute_float8_dynamic_scale_for_fsdp = true: scales of whole weights",
        fields=(GATHERS, TP),
    ),
    Combination(
        converter=LINEAR,
        when="float8 all-gather with another recipe than tensorwise",
        applies=lambda run: _gathers(run) and _recipe(run) != "tensorwise",
        reason="ranks would need scales that other ranks have, which torchao does not gather",
        instead='set recipe_name = "tensorwise", or enable_fsdp_float8_all_gather = false',
        fields=(GATHERS, f"{LINEAR}.recipe_name"),
    ),
    Combination(
        converter=LINEAR,
        when="float8 all-gather with lora",
        applies=lambda run: _gathers(run) and comes_before(run, LINEAR, "lora"),
        reason="scales are those of weights that are trained, and lora freezes them",
        instead="set enable_fsdp_float8_all_gather = false",
        fields=(GATHERS, CONVERTERS),
    ),
    Combination(
        converter=LINEAR,
        when="float8 all-gather with parameters offloaded to the CPU",
        applies=lambda run: _gathers(run) and run.config.training.enable_cpu_offload,
        reason="the cast would be made on the CPU, for every gather",
        instead="set enable_fsdp_float8_all_gather = false",
        fields=(GATHERS, "training.enable_cpu_offload"),
    ),
    Combination(
        converter=LINEAR,
        when="float8 all-gather on one data-parallel rank",
        applies=lambda run: (
            _gathers(run)
            and run.data_parallel_degree == 1
            and run.config.parallelism.context_parallel_degree == 1
        ),
        reason="no effect: nothing is gathered",
        instead="it has one with data_parallel_shard_degree above 1",
        fields=(GATHERS,),
        refused=False,
    ),
    Combination(
        converter=LINEAR,
        when="tensorwise float8 on a GPU below capability 8.9",
        applies=lambda run: _multiplies_in_float8(run, LINEAR) and _recipe(run) == "tensorwise",
        capability=(8, 9),
        reason="it has no products in float8",
        instead=f"set {LINEAR}.emulate = true to try the numerics, or leave the converter out",
        fields=(CONVERTERS,),
    ),
    Combination(
        converter=LINEAR,
        when="rowwise or blockwise float8 on a GPU below capability 9.0",
        applies=lambda run: _multiplies_in_float8(run, LINEAR) and _recipe(run) != "tensorwise",
        capability=(9, 0),
        reason="it has no products in float8 with a scale for each row or block",
        instead=f'set recipe_name = "tensorwise" on capability 8.9, or {LINEAR}.emulate = true',
        fields=(CONVERTERS, f"{LINEAR}.recipe_name"),
    ),
    Combination(
        converter=LINEAR,
        when="tensorwise or rowwise float8 under tensor parallel of tokens that are no multiple of 16",
        applies=lambda run: (
            _multiplies_in_float8(run, LINEAR)
            and _on_tensor_parallel(run)
            and _recipe(run) in ("tensorwise", "rowwise")
            and _tokens(run) % 16 != 0
        ),
        reason="the gradient of a weight sums over them, and a product in float8 sums over a multiple of 16",
        instead="choose a training.seq_len of which a rank has a multiple of 16, or recipe_name = "
        '"rowwise_with_gw_hp" or "blockwise"',
        fields=("training.seq_len", "training.local_batch_size"),
    ),
    _on_a_cpu(LINEAR),
    Combination(
        converter=LINEAR,
        when=f"{LINEAR} on a GPU without compile",
        applies=lambda run: _multiplies_in_float8(run, LINEAR) and not compiles_model(run),
        reason="casts that are not fused take longer than float8 saves",
        instead="set compile.enable = true",
        fields=("compile.enable",),
        refused=False,
    ),
    Combination(
        converter=GROUPED,
        when="experts in float8 on a GPU below capability 9.0",
        applies=lambda run: _multiplies_in_float8(run, GROUPED),
        capability=(9, 0),
        reason="it has no products in float8 with a scale for each row or block",
        instead=f"set {GROUPED}.emulate = true to try the numerics, or leave the converter out",
        fields=(CONVERTERS,),
    ),
    _on_a_cpu(GROUPED),
)


def float8_can_be_combined(run: Run) -> Iterator[HekatonError | str]:
    """What the table says of a run with float8."""
    yield from check_combinations(TABLE, run)
