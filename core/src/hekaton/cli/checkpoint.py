"""``hekaton checkpoint ls | verify | show``: look at checkpoints without loading them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hekaton.cli.arguments import as_path
from hekaton.errors import CheckpointError, ConfigError, choices_hint
from hekaton.urls import is_url

if TYPE_CHECKING:
    from hekaton.checkpoint.runs.inspection import ListedStep, Tensor

USAGE = """\
usage: hekaton checkpoint ls PATH [--json]
       hekaton checkpoint verify PATH
       hekaton checkpoint show PATH [--tensors] [--json]

ls       list the steps: size, when and by how many processes each was saved, layout, model, and whether
         its files are all there
verify   read every file through and compare it with its checksum; the exit status is 1, and what is wrong
         is named, when any step is not whole
show     print one step, of several the newest whole one: layout, versions, what is in it, what
         changed at resumes and after which step, configuration

PATH is a folder of steps (outputs/checkpoint), a run's dump folder (outputs) or one step
(outputs/checkpoint/step-50); a URL (s3://bucket/outputs) as well. Nothing in it is changed, and none
of its files can run code.

  --tensors   each tensor's name, shape and dtype as well
  --json      JSON, with sizes in bytes"""

OPTIONS = {"ls": ["--json"], "verify": [], "show": ["--tensors", "--json"]}
SOME_NOT_WHOLE = 1


def run(arguments: list[str]) -> int:
    """Run ``hekaton checkpoint ARGUMENTS``.

    :returns: 0, or 1 when ``verify`` finds a step that is not whole.
    """
    from hekaton.cli import plugin_flags

    _, rest = plugin_flags(arguments)
    if not rest or set(rest) & {"-h", "--help"}:
        print(USAGE)
        return 0
    verb, *rest = rest
    if verb not in OPTIONS:
        raise ConfigError(f"unknown verb 'checkpoint {verb}'", hint=choices_hint(verb, OPTIONS))
    options = {argument for argument in rest if argument.startswith("-")}
    for option in sorted(options - set(OPTIONS[verb])):
        raise ConfigError(
            f"unknown option {option} of hekaton checkpoint {verb}", hint=USAGE.split("\n\n")[0]
        )
    paths = [argument for argument in rest if not argument.startswith("-")]
    if len(paths) != 1:
        raise ConfigError(f"hekaton checkpoint {verb} takes one PATH", hint=USAGE.split("\n\n")[0])

    from hekaton.checkpoint.runs.inspection import find_steps

    steps = find_steps(paths[0] if is_url(paths[0]) else str(as_path(paths[0])))
    if verb == "verify":
        return verify(steps)
    if verb == "show":
        newest = next((step for step in reversed(steps) if not step.wrong), steps[-1])
        show(newest, tensors="--tensors" in options, as_json="--json" in options)
    else:
        ls(steps, as_json="--json" in options)
    return 0


def ls(steps: Sequence[ListedStep], *, as_json: bool) -> None:
    """Print a line for each step."""
    if as_json:
        _print(json.dumps([_as_json(step) for step in steps], indent=2))
        return
    rows = [("step", "size", "saved (UTC)", "processes", "layout", "model", "status")]
    for step in steps:
        manifest = step.manifest
        known = ("-", "-", "-", "-")
        if manifest is not None:
            saved = manifest.saved_at.removesuffix("+00:00").replace("T", " ")
            known = (_size(manifest.size), saved, str(manifest.processes), _layout(step))
        rows.append((step.name, *known, _model(step), _status(step)))
    _print(_table(rows))


def verify(steps: Sequence[ListedStep]) -> int:
    """Read the steps through, and print what was found of each."""
    from hekaton.checkpoint.runs.inspection import verify as problems_of

    every_whole = True
    total = sum(step.manifest.size for step in steps if step.manifest)
    with _progress(total) as advance:
        found = [(step, problems_of(step, advance)) for step in steps]
    for step, problems in found:
        every_whole &= not problems
        manifest = step.manifest
        if problems:
            lines = problems if len(problems) == 1 else ["", *(f"  {problem}" for problem in problems)]
            _print(f"{step.name}: not whole: " + "\n".join(lines))
        elif manifest is not None:
            print(f"{step.name}: {_status(step)}, {len(manifest.files)} files, {_size(manifest.size)}")
    return 0 if every_whole else SOME_NOT_WHOLE


def show(step: ListedStep, *, tensors: bool, as_json: bool) -> None:
    """Print everything that is known of one step.

    :raises CheckpointError: when nothing is known of it.
    """
    from hekaton.checkpoint.disk.manifest import NotWhole
    from hekaton.checkpoint.runs.inspection import history_of, tensors_of
    from hekaton.identity.values import shown

    try:
        held = tensors_of(step)
    except NotWhole as reason:
        # Without a manifest nor metadata there is nothing to read: that is what is wrong then.
        why = reason if step.external else step.wrong or reason
        raise CheckpointError(f"cannot read {step.folder}: {why}") from reason
    if as_json:
        _print(json.dumps(_as_json(step) | _details(step, held, tensors=tensors), indent=2))
        return
    manifest = step.manifest
    heads = [("folder", str(step.folder)), ("status", _status(step))]
    if manifest is not None:
        heads += [
            ("saved", manifest.saved_at),
            ("model", _model(step)),
            ("processes", str(manifest.processes)),
            ("layout", _layout(step)),
            ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
            ("files", f"{len(manifest.files)}, {_size(manifest.size)}"),
        ]
    blocks = [_table(heads), _table([("part", "tensors", "bytes"), *_part_rows(held)])]
    if history := history_of(step):
        changes = [(f"after {one.step}", one.field, shown(one.was), shown(one.now)) for one in history]
        blocks.append(_table([("changed", "value", "was", "is"), *changes]))
    if tensors:
        rows = [(tensor.name, str(tensor.shape), tensor.dtype) for tensor in held]
        blocks.append(_table([("tensor", "shape", "dtype"), *rows]))
    if config := step.described("config"):
        import tomli_w

        try:
            blocks.append(tomli_w.dumps(config))
        except TypeError as error:  # null, which a run never saves
            raise CheckpointError(f"cannot show the configuration in {step.folder}: {error}") from error
    _print("\n\n".join(blocks))


def _as_json(step: ListedStep) -> dict[str, Any]:
    manifest = step.manifest
    return {
        "step": step.number,
        "folder": str(step.folder),
        "status": step.status,
        "reason": step.wrong or None,
        "bytes": manifest.size if manifest else None,
        "saved_at": manifest.saved_at if manifest else None,
        "processes": manifest.processes if manifest else None,
        **{key: step.described(key) for key in ("layout", "model", "flavor")},
    }


def _details(step: ListedStep, held: Sequence[Tensor], *, tensors: bool) -> dict[str, Any]:
    parts = {part: {"tensors": int(count), "bytes": size} for part, count, size in _by_part(held)}
    details = {
        "versions": dict(step.manifest.versions) if step.manifest else None,
        "config": step.described("config"),
        "identity": step.described("identity"),
        "history": step.described("history") or [],
        "parts": parts,
    }
    if tensors:
        details["tensors"] = {
            tensor.name: {"shape": tensor.shape, "dtype": tensor.dtype, "part": tensor.part or None}
            for tensor in held
        }
    return details


def _by_part(held: Sequence[Tensor]) -> Iterator[tuple[str, int, int]]:
    for part in dict.fromkeys(tensor.part for tensor in held):
        sizes = [tensor.size for tensor in held if tensor.part == part]
        yield part or "all", len(sizes), sum(sizes)


def _part_rows(held: Sequence[Tensor]) -> list[tuple[str, ...]]:
    return [(part, str(count), f"{size:,}") for part, count, size in _by_part(held)]


def _status(step: ListedStep) -> str:
    if step.wrong:
        return f"not whole: {step.wrong}"
    status = step.status if step.status == "good" else "not good: its loss or its weights were not finite"
    return f"{status}, the model alone" if step.model_only else status


def _layout(step: ListedStep) -> str:
    layout = step.described("layout")
    degrees = layout.items() if isinstance(layout, dict) else ()
    return ", ".join(f"{name} {degree}" for name, degree in degrees if degree != 1) or "-"


def _model(step: ListedStep) -> str:
    names = [step.described(key) for key in ("model", "flavor")]
    return " ".join(str(name) for name in names if name) or "-"


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1e3:.1f} kB"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _print(text: str) -> None:
    """Print what files say, without the control characters by which they could write to a terminal."""
    print("".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}"
                  for letter in text))  # fmt: skip


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar of the bytes that were read, on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda size: progress.advance(task, size)
