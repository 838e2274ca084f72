"""Print the measured table of docs/parallelism.md: ``python tests/distributed/table.py``."""

import json
import sys
import tempfile
import time
from pathlib import Path

from test_layouts import CASES, MUTATIONS, REFERENCES, SCRIPT

from hekaton.testing.distributed import run_processes


def main() -> None:
    mutations = {name for _, name, _ in MUTATIONS}
    with tempfile.TemporaryDirectory() as folder:
        references = {
            name: {"flags": [*flags, "--training.local_batch_size", "8"]}
            for name, flags in REFERENCES.items()
        }
        run_processes(
            SCRIPT, "run", processes=1, timeout=200, cases=references, folder=folder, reference=True
        )
        measured = {}
        for launch in sorted({(processes, group) for processes, group, _ in CASES.values()}):
            cases = {
                name: case
                for name, (*its, case) in CASES.items()
                if tuple(its) == launch and name not in mutations
            }
            processes = launch[0]
            began = time.perf_counter()
            run_processes(
                SCRIPT, "run", processes=processes, timeout=1200, cases=cases, folder=folder, reference=False
            )
            print(f"{launch}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
            measured |= json.loads(Path(folder, f"differences-{processes}.json").read_text())
    print("| layout | precision | first loss | gradients | gradient norm | loss after 5 steps |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, got in measured.items():
        reference = CASES[name][2]["reference"]
        layout = name.removesuffix(reference).strip()
        numbers = " | ".join(
            f"{got[key]:.0e}" for key in ("first_loss", "gradients", "grad_norm", "last_loss")
        )
        print(f"| {layout} | {reference} | {numbers} |")


if __name__ == "__main__":
    main()
