"""``hekaton config show --parallel``: a layout, before there is a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hekaton.cli.arguments import load_files, take_number

if TYPE_CHECKING:
    from hekaton.dry_run.explain import Explanation, ParameterRow, StageRow

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show_layout(arguments: list[str]) -> None:
    """Print the layout that files and flags make, as text or JSON.

    :raises ConfigErrors: for everything that is wrong with it.
    """
    from hekaton.config.base import MAX_PROCESSES

    world_size, arguments = take_number(arguments, "--world_size", at_least=1, at_most=MAX_PROCESSES)
    rank, arguments = take_number(arguments, "--rank", at_least=0)
    as_json = "--json" in arguments
    loaded = load_files([argument for argument in arguments if argument != "--json"])

    from hekaton.dry_run.fake import rank_of, smallest_world
    from hekaton.rules import check

    process = rank_of(world_size or smallest_world(loaded.config), rank or 0, what="--rank")
    notices = [*loaded.notices, *check(loaded, world_size=process.world_size, device_type="cuda", here=False)]

    from hekaton.dry_run.explain import explain

    explanation = explain(loaded, process)
    if as_json:
        print(json.dumps(explanation.as_json(), indent=1))
        return
    for notice in notices:
        print(f"notice: {notice}")
    print("\n".join(_lines(explanation)))


def _lines(layout: Explanation) -> Iterator[str]:
    degrees = " × ".join(f"{axis} {size}" for axis, size in layout.degrees.items())
    yield f"mesh of {layout.processes} processes: {degrees}; the last axis joins neighbouring ranks"
    yield f"fsdp, the axis that parameters are sharded over, is dp_shard × cp: {layout.fsdp}"
    if layout.experts:
        axes = " × ".join(f"{axis} {size}" for axis, size in layout.experts.items())
        yield f"experts lie on the same processes, but for pp and dp_replicate, as {axes}"
    if layout.stages:
        yield f"\nstages, under {layout.schedule}:"
        rows = [(str(row.stage), f"pp rank {row.pp_rank}", _modules(row)) for row in layout.stages]
        yield from _table(("stage", "runs on", "modules"), rows)
    yield "\nparameters:"
    header = ("name", "times", "style", "shape", "placement", "on a rank")
    yield from _table(header, [_parameter(row) for row in layout.parameters])
    yield f"\nrank {layout.rank} holds:"
    at_most = {**layout.held, "at most, with activations (estimate)": layout.peak}
    yield from _table((), [(what, _bytes(size)) for what, size in at_most.items()])
    yield f"\nrank {layout.rank} communicates, in one step:"
    messages = [
        (
            message["phase"],
            message["module"] or "-",
            message["kind"],
            f"{message['axis']} ({message['ranks']})",
            str(message["times"]),
            _bytes(message["size"]),
        )
        for message in layout.messages
    ]
    if messages:
        yield from _table(("when", "module", "what", "over", "times", "size each"), messages)
    else:
        yield "  nothing"


def _parameter(row: ParameterRow) -> tuple[str, ...]:
    placement = ", ".join(f"{axis}: {how}" for axis, how in row.placement.items())
    if len(row.local) == 1:
        local = _shape(row.local[0][0])
    else:
        local = ", ".join(f"{_shape(shape)} on {ranks}" for shape, ranks in row.local)
    return row.name, str(row.count), row.style or "-", _shape(row.shape), placement or "whole", local


def _modules(row: StageRow) -> str:
    """Names, with layers that follow each other as ``layers.3-7``."""
    runs: list[tuple[str, int, int]] = []
    for name in row.modules:
        owner, _, last = name.rpartition(".")
        if not last.isdecimal():
            runs.append((name, -1, -1))
        elif runs and runs[-1][0] == owner and runs[-1][2] == int(last) - 1:
            runs[-1] = owner, runs[-1][1], int(last)
        else:
            runs.append((owner, int(last), int(last)))
    return ", ".join(
        name if first < 0 else f"{name}.{first}" if first == last else f"{name}.{first}-{last}"
        for name, first, last in runs
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  " + "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _bytes(size: float) -> str:
    unit = _UNITS[0]
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
