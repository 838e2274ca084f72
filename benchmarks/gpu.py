"""Check and measure everything on one GPU: one command of a few minutes.

    python benchmarks/gpu.py --out FOLDER [--only STAGE,...] [--budget 540]
    python benchmarks/gpu.py --out FOLDER --device cpu --small     # the same code at small sizes, as in CI

Stages, each a process of its own with a time limit, so that one failure hides nothing:

    environment   versions; the rates of a large bf16 product and of a copy; attention kernels side by side
    tests         the tests that are marked cuda
    quick_start   the loss curve of the quick start in float32, against the CPU's (goal: within 1e-3)
    layers        8B-shaped layers in bf16 against a hand-written loop of the same layers, interleaved: step
                  time, tokens/s, MFU, peak memory (goals: compiled at least 1.0 times the loop's speed, 55%
                  MFU, no more memory), and the trainer's overhead per step (goal: 2%)
    recompute     the same layers under each mode of activation checkpointing, compiled and not
    checkpoint    how long training waits for a save in the background, from pinned memory
    profile       two steps: the ten longest kernels, and how long the device had nothing to do
    syncs         how often the host waits for the device within a step (goal: never)

A table is printed last; ``report.json`` and ``report.md`` under ``--out`` have everything, and each stage's
output is in ``STAGE.log``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STAGES = {  # name -> seconds at most
    "environment": 60,
    "tests": 150,
    "quick_start": 150,
    "layers": 200,
    "recompute": 150,
    "checkpoint": 60,
    "profile": 60,
    "syncs": 60,
}
TOGETHER = ("tests", "quick_start")
"""Stages that measure no time, and run at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--only", default=",".join(STAGES), help="stages, separated by commas")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all stages")
    arguments = parser.parse_args()
    stages = arguments.only.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; stages: {', '.join(STAGES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + arguments.budget
    results: dict[str, dict[str, Any]] = {}
    together = [stage for stage in stages if stage in TOGETHER]
    for group in ([[s] for s in stages if s == "environment"] + [together]
                  + [[s] for s in stages if s != "environment" and s not in TOGETHER]):  # fmt: skip
        running = {stage: start(stage, arguments) for stage in group}
        for stage, process in running.items():
            results[stage] = finish(stage, process, arguments, end=end)
            print(f"-- {stage}: {results[stage]['status']}", flush=True)
            (arguments.out / "report.json").write_text(json.dumps(results, indent=1))
    text = report(results)
    (arguments.out / "report.md").write_text(text)
    print(text)
    sys.exit(any(result["status"] != "done" for result in results.values()))


def start(stage: str, arguments: argparse.Namespace) -> tuple[subprocess.Popen[bytes], float]:
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if arguments.device == "cpu" else {})
    command = [
        sys.executable, str(Path(__file__).with_name("gpu_stages.py")), stage,
        "--out", str(arguments.out / f"{stage}.json"), *(["--small"] if arguments.small else []),
    ]  # fmt: skip
    with (arguments.out / f"{stage}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log), time.monotonic()


def finish(
    stage: str, running: tuple[subprocess.Popen[bytes], float], arguments: argparse.Namespace, *, end: float
) -> dict[str, Any]:
    """What a stage wrote, with how it ended; rows that it wrote before it failed are kept."""
    process, began = running
    try:
        limit = STAGES[stage] * (4 if arguments.device == "cpu" else 1)
        left = min(began + limit, end) - time.monotonic()
        status = "done" if process.wait(timeout=max(left, 0.1)) == 0 else f"exit {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        status = "out of time"
    result = {"status": status, "seconds": round(time.monotonic() - began, 1), "rows": []}
    written = arguments.out / f"{stage}.json"
    if written.is_file():
        result["rows"] = [json.loads(line) for line in written.read_text().splitlines()]
    if status != "done":
        lines = (arguments.out / f"{stage}.log").read_text(errors="replace").strip().splitlines()
        result["error"] = lines[-1] if lines else ""
    return result


def report(results: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown, a table for each stage."""
    lines = []
    for stage, result in results.items():
        lines += ["", f"## {stage}: {result['status']}, {result['seconds']} s", ""]
        if "error" in result:
            lines += [f"`{result['error']}`", ""]
        columns = list(dict.fromkeys(column for row in result["rows"] for column in row))
        if columns:
            lines += ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
        for row in result["rows"]:
            lines.append("| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |")
    return "\n".join(lines).strip() + "\n"


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value).replace("|", "/")


if __name__ == "__main__":
    main()
