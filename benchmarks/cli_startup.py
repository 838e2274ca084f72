"""Wall time of ``hekaton --help`` and ``hekaton plugins``, beside a bare interpreter and ``import torch``.

    python benchmarks/cli_startup.py

Prints the median of interleaved runs. The first two are to stay under 0.5 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "hekaton --help": ["-m", "hekaton", "--help"],
    "hekaton plugins": ["-m", "hekaton", "plugins"],
    "import torch": ["-c", "import torch"],
}
RUNS = 7


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - start)
    for name, runs in seconds.items():
        print(f"{name:16}  {statistics.median(runs):.3f} s  (min {min(runs):.3f}, max {max(runs):.3f})")


if __name__ == "__main__":
    main()
