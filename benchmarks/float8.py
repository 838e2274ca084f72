"""Products in bfloat16 against those in float8 and MXFP8 on one GPU, alone and end to end, compiled.

    python benchmarks/float8.py [--only products,experts,layers,curves] [--steps 500]
    python benchmarks/float8.py --small            # the same code at small sizes, on a CPU too, as in CI

    products   forward and backward of the linear layers of Llama 3 8B, over 8,192 tokens
    experts    the same of the experts of Qwen 3 30B-A3B
    layers     8B-shaped layers with embedding, output and AdamW: tokens/s, peak memory, the ratio to bfloat16
               (goal: tensorwise at least 1.28 times; torchtitan publishes 8,532 against 6,667 tokens/s)
    curves     losses of a small model against those in bfloat16 (goal: means of 10 steps within 0.5%)

A recipe that the GPU does not have is in the table with the reason. On a GPU the tables are written to
``benchmarks/results/``; the exit status is 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gpu_stages as gpu
import low_precision_curves as curves
import torch
from gpu_stages import CUDA, DEVICE, GIB, Side, milliseconds
from torch import nn

from hekaton.draft import Draft
from hekaton.mesh import ParallelDims
from hekaton.parallel.plan import ParallelPlan
from hekaton_blocks.experts import GroupedExperts
from hekaton_float8.grouped import GroupedFloat8
from hekaton_float8.linear import LinearFloat8
from hekaton_float8.sections import Float8Section, GroupedFloat8Section
from hekaton_mx.grouped import GroupedMX
from hekaton_mx.linear import LinearMX
from hekaton_mx.sections import GroupedMXSection, MXSection

FLOAT8, MX = "quantize.linear.float8", "quantize.linear.mx"
RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise")
CAPABILITIES = {"tensorwise": (8, 9), "mxfp8": (10, 0)}
"""What a recipe needs of a GPU; (9, 0) where it is not named."""
GOAL = 1.28
Row = dict[str, Any]


def lacks(recipe: str) -> str:
    """Why the GPU cannot compute in a recipe; empty where it can, or where it is emulated."""
    needed = CAPABILITIES.get(recipe, (9, 0))
    if recipe == "bfloat16" or not CUDA or torch.cuda.get_device_capability() >= needed:
        return ""
    return f"needs capability {needed[0]}.{needed[1]}"


def products(small: bool) -> Iterator[Row]:
    """Each linear layer alone."""
    tokens = 32 if small else 8192
    shapes = [(128, 256)] if small else [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]
    sections = {recipe: Float8Section(recipe_name=recipe) for recipe in RECIPES}  # type: ignore[arg-type]
    dims = ParallelDims()
    for outputs, inputs in shapes:

        def build(outputs: int = outputs, inputs: int = inputs) -> nn.Module:
            return nn.Sequential(nn.Linear(inputs, outputs, bias=False))

        x = torch.randn(tokens, inputs, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
        converters: dict[str, Any] = {
            recipe: LinearFloat8(section, dims) for recipe, section in sections.items()
        }
        converters["mxfp8"] = LinearMX(MXSection(filter_fqns=[]), dims)
        yield from compared(
            f"{tokens} x {inputs} x {outputs}", build, converters, ParallelPlan(block="0"), [x]
        )


def experts(small: bool) -> Iterator[Row]:
    """The three products of experts, with rows that are spread evenly but for one expert."""
    number, dim, hidden, each = (4, 128, 128, 24) if small else (128, 2048, 768, 512)
    counts = torch.full((number,), each, device=DEVICE)
    counts[0] -= 7  # no multiple of 16: groups are filled up
    rows = torch.randn(int(counts.sum()), dim, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)

    def build() -> nn.Module:
        layer = nn.Module()
        layer.experts = GroupedExperts(number, dim, hidden)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.02)
        return Experts(layer)

    dims = ParallelDims()
    converters = {
        "rowwise": GroupedFloat8(GroupedFloat8Section(), dims),
        "blockwise": GroupedFloat8(GroupedFloat8Section(recipe_name="blockwise"), dims),
        "mxfp8": GroupedMX(GroupedMXSection(), dims),
    }
    plan = ParallelPlan(block="layer", experts={"layer": "grouped_experts"})
    yield from compared(
        f"{number} experts, {dim} x {hidden}, {each} rows each", build, converters, plan, [rows, counts]
    )


class Experts(nn.Module):
    """One layer of experts."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer.experts(rows, counts)
        return out


def compared(
    what: str,
    build: Callable[[], nn.Module],
    converters: Mapping[str, Any],
    plan: ParallelPlan,
    inputs: Sequence[torch.Tensor],
) -> Iterator[Row]:
    """Forward and backward of what ``build`` gives, as it is and as each converter makes it, compiled."""
    plain = 0.0
    for recipe, converter in {"bfloat16": None, **converters}.items():
        row = {"product": what, "recipe": recipe}
        if reason := lacks(recipe):
            yield row | {"ms": reason}
            continue
        row |= attempt(partial(passes_of, build, converter, plan, inputs))
        if "error" not in row:
            plain = plain or row["ms"]
            row["times bfloat16's speed"] = plain / row["ms"]
        yield row


def passes_of(
    build: Callable[[], nn.Module], converter: Any, plan: ParallelPlan, inputs: Sequence[torch.Tensor]
) -> Row:
    """The time of a forward and backward pass."""
    model = build().to(DEVICE, torch.bfloat16)
    if converter is not None:
        converter.convert(Draft(what="this model", config=None, model=model, plan=plan, init={}))
    model.compile(backend="inductor" if CUDA else "aot_eager")
    upstream = torch.randn_like(model(*inputs))
    return {"ms": milliseconds(lambda: model(*inputs).backward(upstream))}


def layers(small: bool) -> Iterator[Row]:
    """Steps of 8B-shaped layers."""
    n_layers = 1 if small else gpu.layers_that_fit(copies=1)
    sizes = (
        {"dim": 128, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 128, "vocab_size": 2048} if small else {}
    )
    shape = [
        "--model.name", "llama3", "--model.flavor", "8B", "--model.overrides.n_layers", str(n_layers),
        *(word for key, size in sizes.items() for word in (f"--model.overrides.{key}", str(size))),
        "--training.seq_len", "64" if small else "8192", "--training.local_batch_size", "1",
        "--training.steps", "1000", "--activation_checkpoint.mode", "none", "--training.packing", "concat",
        "--compile.enable", *([] if CUDA else ["--compile.backend", "aot_eager"]),
    ]  # fmt: skip
    left = [f"--{FLOAT8}.filter_fqns", "output"]
    variants = {"bfloat16": []} | {
        recipe: ["--model.converters", FLOAT8, f"--{FLOAT8}.recipe_name", recipe, *left] for recipe in RECIPES
    }
    variants["mxfp8"] = ["--model.converters", MX]
    plain = 0.0
    for recipe, flags in variants.items():
        row: Row = {"layers": n_layers, "recipe": recipe}
        if reason := lacks(recipe):
            yield row | {"tokens/s": reason}
            continue
        row |= attempt(partial(steps_of, [*shape, *flags], small=small))
        if "error" not in row:
            plain = plain or row["tokens/s"]
            row["times bfloat16's speed"] = row["tokens/s"] / plain
            if recipe == "tensorwise" and not small:
                row["goal"] = f"{GOAL}: {'met' if row['tokens/s'] / plain >= GOAL else 'missed'}"
        yield row


def steps_of(flags: Sequence[str], *, small: bool) -> Row:
    """Speed and memory of a run."""
    with gpu.trainer([], flags) as run:
        side = Side(run.train_step)
        side.measure(1 if small else 3, count=False, others=0)
        for _ in range(1 if small else 5):
            side.measure(1 if small else 4, count=True, others=0)
        return {
            "tokens/s": run.config.training.seq_len / statistics.median(side.seconds),
            "peak GiB": side.peak / GIB,
        }


def attempt(work: Callable[[], Row]) -> Row:
    """What the work gives, or why it failed: one recipe that does not run hides no other."""
    gc.collect()
    torch.compiler.reset()
    try:
        return work()
    except Exception as e:
        logging.exception("failed")
        return {"error": f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"[:200]}


def loss_curves(steps: int, *, small: bool) -> Iterator[Row]:
    """Losses against those in bfloat16."""
    reference: list[float] = []
    for name, flags in curves.RUNS.items():
        recipe = name.split()[-1]
        if reason := lacks(recipe):
            yield {"recipe": name, "last loss": reason}
            continue
        found = curves.losses(flags, steps=steps)
        reference = reference or found
        band = curves.band(found, reference)
        row = {"recipe": name, "last loss": found[-1], "band": f"{band:.3%}"}
        yield row | (
            {} if small else {"goal": f"{curves.BAND:.1%}: {'met' if band <= curves.BAND else 'missed'}"}
        )


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as Markdown."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        lines.append(
            f"| {' | '.join(f'{one:,.3f}' if isinstance(one, float) else str(one) for one in cells)} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages: dict[str, Callable[[], Iterator[Row]]] = {
        "products": lambda: products(arguments.small),
        "experts": lambda: experts(arguments.small),
        "layers": lambda: layers(arguments.small),
        "curves": lambda: loss_curves(2 if arguments.small else arguments.steps, small=arguments.small),
    }
    parser.add_argument("--only", default=",".join(stages), help="stages, separated by commas")
    parser.add_argument("--steps", type=int, default=500, help="of the curves")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    arguments = parser.parse_args()
    if unknown := set(arguments.only.split(",")) - set(stages):
        parser.error(f"no stage {', '.join(sorted(unknown))}; stages: {', '.join(stages)}")
    if not CUDA and not arguments.small:
        parser.error("there is no GPU to measure; --small runs the same code on a CPU")
    gpu.SMALL = arguments.small
    device = torch.cuda.get_device_name() if CUDA else "CPU"
    lines = [f"# {device}", "", f"torch {torch.__version__}, Python {platform.python_version()}."]
    missed = False
    for stage in arguments.only.split(","):
        rows = []
        for row in stages[stage]():
            rows.append(row)
            print(stage, row, flush=True)
        missed |= any("error" in row or "missed" in row.get("goal", "") for row in rows)
        lines += ["", f"## {stage}", "", *table(rows)]
    print("\n".join(lines))
    if CUDA and not arguments.small:
        name = "-".join(device.lower().split())
        Path(__file__).with_name("results").joinpath(f"float8-{name}.md").write_text("\n".join(lines) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
