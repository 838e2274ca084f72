"""Time from ``hekaton train`` to the end of the first step, beyond that of ``import torch`` alone.

    python benchmarks/startup.py [--runs 5]

Starts both as processes of their own, in turn, after one unmeasured run of each; prints the medians and their
difference (goal: below 2.5 s on the debug model).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "model_zoo/llama3/train_configs/debug_model.toml"


def seconds(command: list[str], *, until: str = "") -> float:
    """From the start of a process until it has written a line with ``until``, or else until its end."""
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            if until and until in line:
                taken = time.perf_counter() - began
                break
        else:
            taken = time.perf_counter() - began
    assert process.returncode == 0, command
    return taken


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    imports, trains = [], []
    for run in range(runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            one_step = ["--training.steps", "1", "--checkpoint.no-enable", "--job.dump_folder", folder]
            import_torch = seconds([sys.executable, "-c", "import torch"])
            train = seconds(
                [sys.executable, "-m", "hekaton", "train", str(CONFIG), *one_step], until="step      1"
            )
        if run:
            imports.append(import_torch)
            trains.append(train)
    print(f"import torch:             {statistics.median(imports):6.2f} s")
    print(f"hekaton train, one step:  {statistics.median(trains):6.2f} s")
    beyond = [train - import_torch for train, import_torch in zip(trains, imports, strict=True)]
    print(f"median difference:        {statistics.median(beyond):6.2f} s")


if __name__ == "__main__":
    main()
