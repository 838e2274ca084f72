"""Many steps that nothing disturbs, with replicas compared and a microbatch replayed in each.

    python benchmarks/undisturbed.py [--steps 1000] [--layouts "replicate2" "shard2 tp2" ...]

The layouts are those of ``tests/fault``, all 20 unless some are named, on real processes over gloo. It takes
hours on a few cores; the test takes 5 steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/fault"))

from test_faults import MATRIX, launched, undisturbed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--layouts", nargs="*", default=MATRIX)
    arguments = parser.parse_args()
    wrong = 0
    for layout in arguments.layouts:
        began = time.time()
        case = undisturbed(layout, steps=arguments.steps)
        with tempfile.TemporaryDirectory() as folder:
            said = launched({layout: case}, Path(folder), timeout=36_000)[layout]
        wrong += bool(said)
        print(
            f"{layout}: {arguments.steps} steps in {time.time() - began:.0f} s: {said or 'nothing'}",
            flush=True,
        )
    sys.exit(wrong)


if __name__ == "__main__":
    main()
