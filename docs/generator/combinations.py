"""The reference of what converters cannot be combined with, from the table that a run is checked with."""

from __future__ import annotations

from generator.markdown import code, table
from hekaton.config import load
from hekaton.rules import Run
from hekaton_float8.combinations import TABLE as FLOAT8
from hekaton_mx.combinations import TABLE as MX

TABLE = (*FLOAT8, *MX)
RECIPES = {
    "quantize.linear.float8": ("tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise"),
    "quantize.grouped_mm.float8": ("rowwise", "blockwise"),
    "quantize.linear.mx": (
        "mxfp8_rceil", "mxfp8_rceil_wgrad_with_hp", "mxfp8_emulated_rceil", "nvfp4", "nvfp4_emulated",
    ),
    "quantize.grouped_mm.mx": ("mxfp8_rceil", "mxfp8_rceil_wgrad_with_hp", "mxfp8_emulated_rceil", "nvfp4"),
}  # fmt: skip
GATHER = ["--quantize.linear.float8.enable_fsdp_float8_all_gather"]
AHEAD = ["--quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp"]
TP = ["--parallelism.tensor_parallel_degree", "2"]
LAYOUTS: dict[str, list[str]] = {
    "dp": [],
    "tp": TP,
    "pp": ["--parallelism.pipeline_parallel_degree", "2"],
    "cp": ["--parallelism.context_parallel_degree", "2"],
    "ep": ["--parallelism.expert_parallel_degree", "2"],
    "float8 all-gather": GATHER,
    "the same, tp": [*GATHER, *TP],
    "the same, tp, scales ahead": [*GATHER, *AHEAD, *TP],
    "lora after it": [],
    "lora before it": [],
    "lora after it, tp": TP,
}
INTRODUCTION = """\
# Combinations of converters

`[model] converters` are run in the order given; those of linear layers and those of experts may be in any
order. A run is checked with one table before anything is built.

## What works together

For each converter and recipe: whether a run with it is accepted, and the capability that a GPU needs. A CPU
emulates what is accepted.
"""


def page() -> str:
    """The page as Markdown."""
    rows = [
        (code(converter), recipe, *_cells(converter, recipe))
        for converter, recipes in RECIPES.items()
        for recipe in recipes
    ]
    matrix = table(("converter", "recipe", *LAYOUTS, "capability"), rows)
    return "\n".join([INTRODUCTION, matrix, "\n## What does not\n", _entries()])


def _cells(converter: str, recipe: str) -> list[str]:
    """Whether each layout is accepted, and the capability that is needed."""
    cells = []
    needed: set[tuple[int, int]] = set()
    for layout, flags in LAYOUTS.items():
        if any(flag.startswith("--quantize.linear.float8") for flag in flags) and (
            converter != "quantize.linear.float8"
        ):
            cells.append("")
            continue
        names = [converter]
        if "lora" in layout:
            names.insert(0 if "before" in layout else 1, "lora")
        chosen = [f"--{converter}.recipe_name", recipe]
        loaded = load([], ["--model.converters", ",".join(names), *chosen, *flags])
        run = Run(loaded.config, loaded.plugins, loaded.origins, 8, "cuda", here=False)
        entries = [entry for entry in TABLE if entry.refused and entry.concerns(run)]
        needed |= {entry.capability for entry in entries if entry.capability}
        cells.append("no" if any(entry.capability is None for entry in entries) else "yes")
    return [*cells, ".".join(map(str, max(needed))) if needed else "any"]


def _entries() -> str:
    header = ("converter", "combination", "the run is", "because", "instead")
    rows = [
        (
            code(entry.converter), entry.when, "refused" if entry.refused else "given a notice", entry.reason,
            entry.instead,
        )
        for entry in TABLE
    ]  # fmt: skip
    return table(header, rows)
