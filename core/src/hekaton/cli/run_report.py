"""``hekaton report RUN_FOLDER``: where the time of a run went, and its curves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from hekaton.accounting import add_up, goodput_by_step, read_lines_of
from hekaton.api.records import past_run
from hekaton.checkpoint.disk.folders import reason_of
from hekaton.cli.arguments import as_path, take_texts
from hekaton.errors import ConfigError
from hekaton.json_lines import is_number

USAGE = """\
usage: hekaton report RUN_FOLDER [--svg FILE]

Say where the wall time of a run went, over all of its starts, and which share of it computed steps that count
(goodput). RUN_FOLDER is the run's job.dump_folder.

  --svg FILE    also write a plot of the loss, the rate and the goodput until then, by step; a line across
                wherever the run was started again"""
WIDTH, HEIGHT, MARGIN = 720, 200, 48


def run(arguments: list[str]) -> int:
    """Run ``hekaton report ARGUMENTS``."""
    if not arguments or set(arguments) & {"-h", "--help"}:
        print(USAGE)
        return 0
    texts, rest = take_texts(arguments, {"svg": ""})
    options = [one for one in rest if one.startswith("-")]
    if options or len(rest) != 1:
        wrong = (
            f"unknown option {options[0]} of hekaton report"
            if options
            else "hekaton report takes a run folder"
        )
        raise ConfigError(wrong, hint=USAGE.splitlines()[0])
    place = as_path(rest[0])
    lines = read_lines_of(place)
    account = add_up(lines)
    for name, seconds in sorted(account.seconds.items(), key=lambda one: -one[1]):
        share = seconds / account.total if account.total else 0.0
        print(f"{name:<14} {seconds:>12,.1f} s {share:>7.1%}")
    print(f"{'total':<14} {account.total:>12,.1f} s")
    print(f"step {account.step}, {account.starts} start(s), goodput {account.goodput:.1%}")
    if texts["svg"]:
        goodput = [{"step": step, "goodput": share} for step, share in goodput_by_step(lines)]
        run = past_run(place)
        if not run.metrics:
            raise ConfigError(
                f"'{place}' has no metrics to plot", hint='a run with metrics.loggers = "jsonl" writes them'
            )
        drawn = plot(run.metrics, goodput, restarts=run.restarts)
        try:
            as_path(texts["svg"]).write_text(drawn, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write '{texts['svg']}': {reason_of(error)}") from error
    return 0


def plot(
    lines: Sequence[dict[str, Any]], goodput: Sequence[dict[str, Any]] = (), *, restarts: Sequence[int] = ()
) -> str:
    """An SVG with a curve of the loss, one of the rate of work and one of the goodput, by step.

    :param lines: of ``metrics.jsonl``; :param goodput: the same for ``goodput``.
    :param restarts: steps after which the run was started again.
    """
    names = {name for line in lines for name in line}
    rates = sorted(name for name in names if name.endswith("_per_second") and "/" not in name)
    curves = [*((name, lines) for name in ["loss", *rates]), *([("goodput", goodput)] if goodput else [])]
    panels = [
        _panel(name, those, top=index * HEIGHT, restarts=restarts)
        for index, (name, those) in enumerate(curves)
    ]
    size = f'width="{WIDTH}" height="{HEIGHT * len(panels)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">{"".join(panels)}</svg>\n'
    )


def _panel(name: str, lines: Sequence[dict[str, Any]], *, top: int, restarts: Sequence[int]) -> str:
    points = [(line["step"], line[name]) for line in lines if is_number(line.get(name))]
    title = f'<text x="{MARGIN}" y="{top + 16}" font-size="12">{escape(name)}</text>'
    if not points:
        return title
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    across, up = (right - left) or 1, (high - low) or 1

    def x(step: float) -> str:
        return f"{MARGIN + (step - left) / across * (WIDTH - 2 * MARGIN):.1f}"

    drawn = " ".join(
        f"{x(step)},{top + HEIGHT - 24 - (value - low) / up * (HEIGHT - MARGIN):.1f}"
        for step, value in points
    )
    lines_across = "".join(
        f'<line x1="{x(step)}" x2="{x(step)}" y1="{top + 24}" y2="{top + HEIGHT - 24}" stroke="silver"/>'
        for step in restarts
        if left <= step <= right
    )
    said = f"steps {left} to {right}, {low:.4g} to {high:.4g}"
    return (
        f'{title}<text x="{MARGIN}" y="{top + HEIGHT - 6}" font-size="10">{said}</text>{lines_across}'
        f'<polyline fill="none" stroke="steelblue" points="{drawn}"/>'
    )
