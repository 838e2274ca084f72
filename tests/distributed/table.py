"""Print the measured table of docs/parallelism.md: ``python tests/distributed/table.py``.

With a word, only the rows of cases that have it in their name: ``python tests/distributed/table.py tied``.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path

from test_layouts import CASES, MUTATIONS, SCRIPT, references

from hekaton.testing.distributed import run_processes

STEPS = 5


def main(word: str = "") -> None:
    mutations = {name for _, name, _ in MUTATIONS}
    chosen = {name: its for name, its in CASES.items() if word in name and name not in mutations}
    needed = {case["reference"] for *_, case in chosen.values()}
    with tempfile.TemporaryDirectory() as folder:
        alone = {name: case | {"steps": STEPS} for name, case in references().items() if name in needed}
        run_processes(SCRIPT, "run", processes=1, timeout=200, cases=alone, folder=folder, reference=True)
        measured = {}
        for launch in sorted({(processes, group) for processes, group, _ in chosen.values()}):
            cases = {
                name: case | {"steps": STEPS} for name, (*its, case) in chosen.items() if tuple(its) == launch
            }
            processes = launch[0]
            began = time.perf_counter()
            run_processes(
                SCRIPT, "run", processes=processes, timeout=1200, cases=cases, folder=folder, reference=False
            )
            print(f"{launch}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
            measured |= json.loads(Path(folder, f"differences-{processes}.json").read_text())
    print(f"| layout | precision | first loss | gradients | gradient norm | loss after {STEPS} steps |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (what, precision), rows in grouped(measured).items():
        numbers = " | ".join(
            f"{max(row[key] for row in rows):.0e}"
            for key in ("first_loss", "gradients", "grad_norm", "last_loss")
        )
        print(f"| {what} | {precision} | {numbers} |")


WORDS = {
    "enable backend aot_eager": "compiled,",
    "mode selective selective_ac_option op": "recomputed by operator",
    "mode selective": "every second block recomputed",
    "mode full": "recomputed",
    "mode memory_budget memory_budget 2": "recomputed within a budget",
    "local_batch_size": "accumulated, rows at once:",
    "pipeline_parallel_schedule_csv csv": "schedule from a file",
    "pipeline_parallel_schedule ": "",
    "context_parallel_strategy ": "",
    "context_parallel_load_balancer none": "no load balancing",
}


def grouped(measured: dict) -> dict:
    """(what to call it, precision) -> what was measured: one row for each layout as it is, and one for all
    layouts with the same options, of which the table shows the worst."""
    options = {}
    for name, got in measured.items():
        precision = CASES[name][2]["precision"]
        words = name.removesuffix(precision).split()
        layout = " ".join(word for word in words if re.fullmatch(r"(replicate|shard|cp|tp|pp)\d", word))
        option = " ".join(words[len(layout.split()) :]) if layout else ""
        if precision.endswith(" concat"):
            option = ", ".join(filter(None, (option, "one document per row")))
        precision = precision.removesuffix(" concat")
        for flag, word in WORDS.items():
            option = option.replace(flag, word)
        option = option.strip().removesuffix(",")
        key = (layout if precision == "float64" and not option else "", option, precision)
        options.setdefault(key, []).append((layout, got))
    return {
        (f"{alone or option or 'no options'}" + ("" if alone else f": {', '.join(layout for layout, _ in rows)}"), precision):
            [got for _, got in rows]
        for (alone, option, precision), rows in sorted(options.items(), key=lambda item: (not item[0][0], item[0][2] != "float64"))
    }  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
