"""Losses of a small llama3 over 200 steps in bfloat16, and with products in float8 and MXFP8, as a plot.

    python benchmarks/low_precision_curves.py            # writes docs/how-to/low-precision-curves.svg

Means of 10 steps must stay within 0.5% of those in bfloat16: the exit status is 1, and nothing is written,
where they do not. On a CPU with instructions for bfloat16 (AVX512_BF16, AMX) it takes two minutes; without
them many times as long.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

from hekaton.cli import main as hekaton

SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 128, "vocab_size": 256 + 2}
FLOAT8, MX = "quantize.linear.float8", "quantize.linear.mx"
REFERENCE = "bfloat16"
RUNS: dict[str, list[str]] = {
    REFERENCE: [],
    "float8 tensorwise": ["--model.converters", FLOAT8, f"--{FLOAT8}.filter_fqns", "output"],
    "float8 rowwise": [
        "--model.converters", FLOAT8, f"--{FLOAT8}.filter_fqns", "output",
        f"--{FLOAT8}.recipe_name", "rowwise",
    ],
    "mxfp8": ["--model.converters", MX],
}  # fmt: skip
COLOURS = ("#222222", "#d1495b", "#edae49", "#00798c")
WINDOW = 10
"""Steps that a point is the mean of."""
BAND = 0.005
"""The largest relative difference of means."""


def losses(arguments: list[str], *, steps: int) -> list[float]:
    """The loss of each step; products that are not converted are computed in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [
            "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", json.dumps(SIZES),
            "--model.tokenizer", "byte", "--training.seq_len", "64", "--training.local_batch_size", "8",
            "--training.steps", str(steps), "--training.mixed_precision_param", "bfloat16",
            "--optimizer.lr", "2e-3", "--lr_scheduler.warmup_steps", "10", "--metrics.log_freq", "1",
            "--metrics.loggers", "jsonl", "--job.dump_folder", folder,
        ]  # fmt: skip
        if hekaton(["train", *flags, *arguments]):
            raise SystemExit(f"the run with {arguments} failed")
        (written,) = Path(folder).rglob("metrics.jsonl")
        lines = [json.loads(line) for line in written.read_text().splitlines()]
    found = {line["step"]: loss_of(line) for line in lines}
    return [found[step] for step in range(1, steps + 1)]


def loss_of(line: dict[str, float]) -> float:
    """The loss in a line of ``metrics.jsonl``."""
    return line["loss"]


def means(values: list[float]) -> list[float]:
    """The mean of each window."""
    return [sum(values[start : start + WINDOW]) / WINDOW for start in range(0, len(values), WINDOW)]


def band(curve: list[float], reference: list[float]) -> float:
    """The largest relative difference of means; infinite where one is no number."""
    found = [abs(a - b) / b for a, b in zip(means(curve), means(reference), strict=True)]
    return max(found) if all(map(math.isfinite, found)) else math.inf


def plot(curves: dict[str, list[float]], bands: dict[str, float]) -> str:
    """An SVG of the means over steps."""
    width, height, left, top = 640, 360, 50, 20
    high = max(max(means(curve)) for curve in curves.values())
    low = min(min(means(curve)) for curve in curves.values())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 20} {height + 60}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for part in range(5):
        loss = low + (high - low) * part / 4
        y = top + height * (1 - part / 4)
        lines.append(f'<line x1="{left}" y1="{y:.0f}" x2="{width}" y2="{y:.0f}" stroke="#dddddd"/>')
        lines.append(f'<text x="8" y="{y + 4:.0f}">{loss:.2f}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        points = means(curve)
        across = (width - left) / (len(points) - 1)
        heights = [top + height * (high - loss) / (high - low) for loss in points]
        at = " ".join(f"{left + across * i:.1f},{y:.1f}" for i, y in enumerate(heights))
        lines.append(f'<polyline points="{at}" fill="none" stroke="{COLOURS[number]}" stroke-width="1.5"/>')
        text = name if name not in bands else f"{name}: within {bands[name]:.2%}"
        lines.append(
            f'<text x="{width - 230}" y="{top + 20 + 18 * number}" fill="{COLOURS[number]}">{text}</text>'
        )
    steps = len(next(iter(curves.values())))
    lines.append(
        f'<text x="{left}" y="{height + 45}">loss, mean of {WINDOW} steps, over {steps} steps</text>'
    )
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--plot", type=Path, default=Path("docs/how-to/low-precision-curves.svg"))
    arguments = parser.parse_args()
    curves = {name: losses(flags, steps=arguments.steps) for name, flags in RUNS.items()}
    reference = curves[REFERENCE]
    bands = {name: band(curve, reference) for name, curve in curves.items() if name != REFERENCE}
    for name, curve in curves.items():
        print(
            f"{name:18} first {means(curve)[0]:.5f} last {means(curve)[-1]:.5f} band {bands.get(name, 0):.3%}"
        )
    if outside := [name for name, difference in bands.items() if not difference <= BAND]:
        print(f"outside of the band of {BAND:.1%}: {', '.join(outside)}")
        return 1
    arguments.plot.write_text(plot(curves, bands))
    return 0


if __name__ == "__main__":
    sys.exit(main())
